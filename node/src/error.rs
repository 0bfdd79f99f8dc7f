use std::fmt::Display;

/// What a failure means for whoever called: it decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Something did not work (exit code 1).
    Failed,
    /// The input cannot be (exit code 2).
    Invalid,
    /// It could be done, but would do harm (exit code 4).
    Refused,
}

/// What failed, why, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    /// What it means for the caller.
    pub kind: Kind,
    /// What failed and why, without secrets.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Something did not work.
    pub fn failed(what: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, what: what.into(), hint: None, source: None }
    }

    /// The input cannot be.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self { kind: Kind::Invalid, ..Self::failed(what) }
    }

    /// It would do harm.
    pub fn refused(what: impl Into<String>) -> Self {
        Self { kind: Kind::Refused, ..Self::failed(what) }
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Keeps the error that led to this one.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The message with all its causes, `: ` between them.
    pub fn chain(&self) -> String {
        let mut text = self.what.clone();
        let mut next = std::error::Error::source(self);
        while let Some(e) = next {
            text.push_str(": ");
            text.push_str(&e.to_string());
            next = e.source();
        }
        text
    }
}

impl From<cluster::Invalid> for Error {
    fn from(e: cluster::Invalid) -> Self {
        Self::invalid(e.to_string())
    }
}

/// Says what was being done when an error came up.
pub trait Context<T> {
    /// Turns any error into [`Error`] of kind Failed.
    fn context(self, what: impl Display) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl Display) -> Result<T> {
        self.map_err(|e| Error::failed(what.to_string()).because(e))
    }
}
