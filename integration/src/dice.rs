//! Numbers that look random, the same ones for the same seed.

/// Steele, Lea and Flood's splitmix64: good numbers from any seed.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// All that follows depends on the seed alone.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from 0 to `limit` - 1; 0 if there is none.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % limit.max(1)
    }

    /// Takes one out of a list.
    pub fn take<T>(&mut self, list: &mut Vec<T>) -> Option<T> {
        let n = usize::try_from(self.below(u64::try_from(list.len()).ok()?)).ok()?;
        (n < list.len()).then(|| list.swap_remove(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_the_same_numbers() {
        let throw = |seed| {
            let mut dice = Dice::new(seed);
            (0..20).map(|_| dice.below(6)).collect::<Vec<_>>()
        };
        assert_eq!(throw(7), throw(7));
        assert_ne!(throw(7), throw(8));
        assert!((0..6).all(|n| (0..9).flat_map(throw).any(|m| m == n)));
        let (mut list, mut dice) = (vec![1, 2, 3], Dice::new(1));
        let mut taken: Vec<_> = std::iter::from_fn(|| dice.take(&mut list)).collect();
        taken.sort_unstable();
        assert_eq!(taken, [1, 2, 3]);
    }
}
