//! Tables, for people and for the documentation.

use std::time::Duration;

/// A table: a title, the head, and rows of as many cells.
#[derive(Debug)]
pub struct Table {
    /// What it is about.
    pub title: &'static str,
    /// The columns.
    pub head: Vec<String>,
    /// The cells.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// As Markdown, or with columns of equal width.
    pub fn text(&self, markdown: bool) -> String {
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        if markdown {
            let line = |cells: &Vec<String>| format!("| {} |\n", cells.join(" | "));
            let rule = format!("|{}\n", "---|".repeat(self.head.len()));
            let rows: String = self.rows.iter().map(line).collect();
            return format!("## {}\n\n{}{rule}{rows}", self.title, line(&self.head));
        }
        let width = |column| lines().filter_map(|cells| cells.get(column)).map(|cell: &String| cell.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut text = format!("{}\n", self.title);
        for cells in lines() {
            let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            text.push_str(format!("  {}", padded.join("  ")).trim_end());
            text.push('\n');
        }
        text
    }
}

/// The median, and the range when there is one: `0.40 (0.38-0.44) s`.
pub fn spread(times: &[Duration]) -> String {
    let mut seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    seconds.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (seconds.first(), seconds.last()) else { return "-".to_owned() };
    let Some(median) = seconds.get(seconds.len() / 2) else { return "-".to_owned() };
    if format!("{first:.2}") == format!("{last:.2}") {
        return format!("{median:.2} s");
    }
    format!("{median:.2} ({first:.2}-{last:.2}) s")
}

/// The same, where nothing at all is worth a word: less than we could see, too.
pub fn gap(times: &[Duration]) -> String {
    if times.iter().all(|time| *time < Duration::from_millis(10)) { "none".to_owned() } else { spread(times) }
}

/// The median.
pub fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Whether the median keeps to an aim.
pub fn verdict(times: &[Duration], aim: Option<Duration>) -> String {
    let Some(aim) = aim else { return String::new() };
    format!("≤ {} s: {}", aim.as_secs_f64(), yes(median(times) <= aim))
}

/// Whether an aim was reached.
pub fn yes(holds: bool) -> &'static str {
    if holds { "yes" } else { "**no**" }
}

/// The median of plain numbers; 0 of none.
pub fn middle(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(list: &[u64]) -> Vec<Duration> {
        list.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn median_and_range() {
        assert_eq!(spread(&ms(&[440, 380, 400])), "0.40 (0.38-0.44) s");
        assert_eq!(spread(&ms(&[400])), "0.40 s");
        assert_eq!(gap(&ms(&[0, 0])), "none");
        assert_eq!(verdict(&ms(&[400, 600, 300]), Some(Duration::from_millis(500))), "≤ 0.5 s: yes");
    }

    #[test]
    fn both_forms() {
        let cells = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let table = Table { title: "T", head: cells(["a", "b"]), rows: vec![cells(["long", "c"])] };
        assert_eq!(table.text(false), "T\n  a     b\n  long  c\n");
        assert_eq!(table.text(true), "## T\n\n| a | b |\n|---|---|\n| long | c |\n");
    }
}
