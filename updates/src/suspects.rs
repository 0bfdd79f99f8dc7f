use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::PackageName;

/// Packages of which one made a host crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Suspects {
    /// On this node they are tried by halves; on another one when it is gone.
    pub node: String,
    /// One of them, or none.
    pub packages: Vec<PackageName>,
    /// How many of the first of them cannot be installed without the others: the rest is tried first.
    #[serde(default)]
    pub stuck: u32,
}
