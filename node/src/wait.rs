/// What a probe found.
#[derive(Debug)]
pub enum Awaited<T> {
    /// What was awaited is there.
    Done(T),
    /// It is not, and this is what is missing.
    Missing(String),
}

impl<T> Awaited<T> {
    /// Still missing.
    pub fn missing(what: impl Into<String>) -> Self {
        Self::Missing(what.into())
    }
}
