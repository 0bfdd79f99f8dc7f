//! Log lines in the form that k3s gives them (logrus, to stderr).

use std::fmt::Write as _;

/// Severity of a line, as k3s names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Normal course of events.
    Info,
    /// Worth a look.
    Warning,
    /// Something failed, k3s goes on.
    Error,
    /// k3s ends with status 1.
    Fatal,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Fatal => "fatal",
        }
    }
}

/// Writes one line to stderr.
pub fn line(level: Level, message: &str) {
    let now = jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S.%9f%:z").to_string();
    eprintln!("{}", render(&now, level, message));
}

fn render(now: &str, level: Level, message: &str) -> String {
    let mut quoted = String::with_capacity(message.len() + 2);
    for c in message.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(quoted, "\\x{:02x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    format!("time=\"{now}\" level={} msg=\"{quoted}\"", level.name())
}

/// Logs the message and ends the process with status 1, as k3s does.
/// The kernel takes the children along (see [`crate::process`]).
pub fn fatal(message: &str) -> ! {
    line(Level::Fatal, message);
    std::process::exit(1)
}

/// `level=info`
#[macro_export]
macro_rules! info { ($($a:tt)*) => { $crate::log::line($crate::log::Level::Info, &format!($($a)*)) }; }
/// `level=warning`
#[macro_export]
macro_rules! warning { ($($a:tt)*) => { $crate::log::line($crate::log::Level::Warning, &format!($($a)*)) }; }
/// `level=error`
#[macro_export]
macro_rules! error { ($($a:tt)*) => { $crate::log::line($crate::log::Level::Error, &format!($($a)*)) }; }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_logrus_does() {
        assert_eq!(render("T", Level::Fatal, "a \"b\"\nc\\"), r#"time="T" level=fatal msg="a \"b\"\nc\\""#);
    }
}
