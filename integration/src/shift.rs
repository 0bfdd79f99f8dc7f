//! Another time of day for what runs in a host. The clock is the machine's, and a time namespace can only shift the monotonic
//! ones. But programs ask for the time through a function that the kernel maps into each of them (the vDSO, vdso(7)); it is
//! replaced here, in every process of a host that is frozen meanwhile, by one that asks the kernel and adds to the answer.
//!
//! What is shifted is `CLOCK_REALTIME` as Go, Rust and glibc read it. Programs that are started later have the right time, as have
//! the kernel's own stamps, of files for example.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// What programs call to know the time.
const FUNCTION: &[u8] = b"__vdso_clock_gettime";

/// The function in every process of this machine, relative to where its vDSO is.
pub(crate) struct Function {
    offset: u64,
    code: Vec<u8>,
}

impl Function {
    /// As it is in this process.
    pub(crate) fn find() -> Result<Self> {
        ensure!(std::env::consts::ARCH == "x86_64", "the lab can shift the clock on x86_64 only");
        let own = Path::new("/proc/self");
        let (start, size) = vdso(own)?.context("this process has no vDSO")?;
        let mut image = vec![0; size];
        File::open(own.join("mem"))?.read_exact_at(&mut image, start).context("cannot read the vDSO")?;
        let (offset, size) = symbol(&image).context("the vDSO has no clock_gettime")?;
        let code = image.get(offset..offset + size).context("the vDSO's clock_gettime lies outside of it")?.to_vec();
        ensure!(code.len() >= shifted(0).len(), "the vDSO's clock_gettime is too short to be replaced");
        Ok(Self { offset: offset.try_into()?, code })
    }

    /// Whether no thread of a stopped process is in the middle of the function.
    pub(crate) fn is_left_alone(&self, pid: u32) -> Result<bool> {
        let process = format!("/proc/{pid}");
        let Some((start, _)) = vdso(Path::new(&process))? else { return Ok(true) };
        let inside = start + self.offset..start + self.offset + u64::try_from(self.code.len())?;
        for thread in fs::read_dir(format!("{process}/task"))? {
            // its last word is the program counter (proc_pid_syscall(5))
            let state = fs::read_to_string(thread?.path().join("syscall"))?;
            let counter = state.split_whitespace().last().and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
            if counter.is_none_or(|counter| inside.contains(&counter)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Shifts a stopped process's clock by so many seconds; 0 gives it the kernel's own function back.
    pub(crate) fn shift(&self, pid: u32, seconds: i64) -> Result<()> {
        let process = format!("/proc/{pid}");
        let Some((start, _)) = vdso(Path::new(&process))? else { return Ok(()) };
        let mut code = self.code.clone();
        if seconds != 0 {
            let replaced = shifted(seconds);
            code.splice(..replaced.len(), replaced);
        }
        let memory = File::options().write(true).open(format!("{process}/mem"))?;
        memory.write_all_at(&code, start + self.offset).with_context(|| format!("cannot shift the clock of process {pid}"))
    }
}

/// `clock_gettime(edi, rsi)`: asks the kernel, and adds to the seconds when it was asked for the time of day.
fn shifted(seconds: i64) -> Vec<u8> {
    let ask = [0xb8, 0xe4, 0, 0, 0, 0x0f, 0x05]; // mov eax, 228 (clock_gettime); syscall
    let skip = [0x85, 0xff, 0x75, 0x0d]; // test edi, edi (CLOCK_REALTIME is 0); jnz to the ret
    let add = [0x48, 0xb9]; // movabs rcx, …
    let rest = [0x48, 0x01, 0x0e, 0xc3]; // add [rsi], rcx; ret
    [ask.as_slice(), &skip, &add, &seconds.to_le_bytes(), &rest].concat()
}

/// Where a process's vDSO is, and its size; `None` if it has none, or is gone.
fn vdso(process: &Path) -> Result<Option<(u64, usize)>> {
    let maps = match fs::read_to_string(process.join("maps")) {
        Ok(maps) => maps,
        // it has ended
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}/maps", process.display())),
    };
    let range = maps.lines().find(|line| line.ends_with("[vdso]")).and_then(|line| line.split(' ').next()?.split_once('-'));
    let Some((start, end)) = range else { return Ok(None) };
    let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
    Ok(Some((start, end.saturating_sub(start).try_into()?)))
}

/// Where the function is in the image, and its size (elf(5), 64 bits).
fn symbol(image: &[u8]) -> Option<(usize, usize)> {
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = image.get(at..at.checked_add(size)?)?;
        usize::try_from(bytes.iter().rev().fold(0_u64, |all, byte| all << 8 | u64::from(*byte))).ok()
    };
    let (headers, count) = (number(32, 8)?, number(56, 2)?);
    // PT_DYNAMIC
    let dynamic = (0..count).map(|n| headers + 56 * n).find(|at| number(*at, 4) == Some(2))?;
    let dynamic = number(dynamic + 8, 8)?;
    let entry = |tag| (dynamic..image.len()).step_by(16).find(|at| number(*at, 8) == Some(tag));
    // DT_SYMTAB, DT_STRTAB: their addresses are offsets, since a vDSO is linked to 0
    let (symbols, names) = (number(entry(6)? + 8, 8)?, number(entry(5)? + 8, 8)?);
    let is_it = |at: &usize| {
        let name = number(*at, 4).and_then(|name| image.get(names.checked_add(name)?..));
        name.is_some_and(|name| name.starts_with(FUNCTION) && name.get(FUNCTION.len()) == Some(&0))
    };
    let at = (symbols..image.len()).step_by(24).find(is_it)?;
    Some((number(at + 8, 8)?, number(at + 16, 8)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_is_found_in_this_process() {
        let function = Function::find().unwrap();
        assert!(function.offset > 0 && function.code.len() > shifted(1).len());
        assert_eq!(shifted(-1).len(), 25);
    }
}
