//! What users see: progress on stderr, data on stdout.

mod hosts;
mod progress;

pub use hosts::{Hosts, outcome, short};
pub use progress::Progress;

use std::io::{IsTerminal as _, Write as _};
use std::sync::OnceLock;

use comfy_table::{Table, presets};
use indicatif::{MultiProgress, ProgressDrawTarget};
use node::{Context as _, Error, Result};
use serde::Serialize;

use crate::commands::Format;

/// Prints data on stdout; `table` makes the form for people.
///
/// # Errors
/// When it cannot be written as JSON or YAML.
pub fn print<T: Serialize>(data: &T, format: Format, table: impl FnOnce(&T) -> String) -> Result<()> {
    let text = match format {
        Format::Table => table(data),
        Format::Json => serde_json::to_string_pretty(data).map_err(|e| Error::failed("cannot write JSON").because(e))?,
        Format::Yaml => serde_saphyr::to_string(data).map_err(|e| Error::failed("cannot write YAML").because(e))?,
    };
    anstream::println!("{}", text.trim_end());
    Ok(())
}

/// Whether stderr is a terminal on which lines can be rewritten.
pub fn is_live() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// All live lines: there is one terminal.
fn live_lines() -> &'static MultiProgress {
    static LINES: OnceLock<MultiProgress> = OnceLock::new();
    LINES.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
}

/// Does something on the terminal that the live lines must not get in the way of.
pub fn quietly<T>(work: impl FnOnce() -> T) -> T {
    live_lines().suspend(work)
}

/// Asks on the terminal, and takes nothing but a yes for a yes.
///
/// # Errors
/// When it cannot be asked or answered.
pub fn ask(question: &str) -> Result<bool> {
    eprint!("{question}Go on? [y/N] ");
    std::io::stderr().flush().context("cannot ask")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A table without lines, its head in capitals, as kubectl prints them.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.iter().map(|h| h.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|l| l.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain() {
        let t = table(&["node", "ready"], vec![vec!["h1".into(), "yes".into()], vec!["node-2".into(), "no".into()]]);
        insta::assert_snapshot!(t, @r"
        NODE     READY
        h1       yes
        node-2   no
        ");
    }
}
