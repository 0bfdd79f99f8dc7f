use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// An enum of words that stand in a status. A word that is not known, a vendor's or a later version's, is kept as it is.
macro_rules! words {
    ($(#[$doc:meta])* $t:ident { $($(#[doc = $what:literal])+ $word:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum $t {
            $($(#[doc = $what])+ $word,)+
            /// Another operator's word.
            Other(String),
        }

        impl $t {
            /// The word, as it stands in a status.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$word => stringify!($word),)+
                    Self::Other(word) => word,
                }
            }

            /// What it means, for people.
            pub fn meaning(&self) -> &str {
                match self {
                    $(Self::$word => concat!($($what),+).trim_ascii_start().trim_end_matches('.'),)+
                    Self::Other(word) => word,
                }
            }
        }

        impl From<String> for $t {
            fn from(word: String) -> Self {
                match word.as_str() {
                    $(stringify!($word) => Self::$word,)+
                    _ => Self::Other(word),
                }
            }
        }

        impl From<$t> for String {
            fn from(word: $t) -> Self {
                word.as_str().to_owned()
            }
        }

        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl JsonSchema for $t {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($t).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let all = [$(concat!(stringify!($word), ":", $($what),+)),+].join(" ");
                json_schema!({ "type": "string", "description": all })
            }
        }
    };
}

words! {
    /// How a node stands with its packages or its patches.
    State {
        /// Nothing is due by the node's stage.
        UpToDate,
        /// Nothing is installed; the reason says why.
        Suspended,
        /// Updates are due; the reason says what they wait for.
        Pending,
        /// Nobody knows; the reason says why.
        Unknown,
    }
}

words! {
    /// Why.
    Reason {
        /// The node has the label maintenance.virtuozzo.io/suspend.
        ManuallySuspended,
        /// The spec has suspend: true.
        ClusterSuspended,
        /// The node serves storage.
        StorageNode,
        /// The node's policy label is none of fast, slow, stable and auto.
        InvalidPolicy,
        /// The spec cannot be understood.
        InvalidSpec,
        /// Updates are halted: the spec has halted: true.
        Halted,
        /// No maintenance window is open.
        WindowClosed,
        /// The node's agent has not reported yet.
        NotReported,
        /// The node's agent has not reported for more than a day.
        AgentSilent,
        /// Looking for updates failed on the node.
        CheckFailed,
        /// The node has nothing that installs such updates.
        NotSupported,
        /// An update of the node is under way.
        Updating,
        /// The last update left the node in a state in which it takes no pods; it goes on when the node is well.
        Broken,
        /// All that is available was published too lately for the node's stage.
        TooYoung,
        /// All that is due is banned.
        Banned,
        /// All that is due is suspected of crashing hosts, and is being tried elsewhere or later.
        Suspected,
        /// What is due is not approved.
        NotApproved,
        /// The node is not ready.
        NodeNotReady,
        /// The update would probably not end while a window is open.
        DoesNotFit,
        /// An update failed lately and is tried again later.
        RetryLater,
        /// The host needs a reboot, though it was rebooted lately: that did not help, and is tried again later.
        RebootInVain,
        /// Updates of an earlier stage failed on too many nodes.
        StageFailed,
        /// Alerts are firing, or nobody can say whether any are.
        AlertsFiring,
        /// Too many nodes are not ready.
        TooManyUnavailable,
        /// Other nodes come first.
        WaitingForTurn,
        /// etcd would have no quorum without the server.
        QuorumAtRisk,
        /// Nobody knows how etcd's members are.
        QuorumUnknown,
        /// The server has the floating address, and other servers come first.
        HasFloatingAddress,
        /// A disruption budget keeps a pod on the node.
        PodDisruptionBudget,
        /// A pod that must not be disturbed is on the node.
        BlockingPod,
        /// It could not be found out in time whether the update may start.
        NotChecked,
        /// The spec changed before anything was touched.
        SpecChanged,
        /// All that is due needs other packages, which are not, or the host would not install it.
        LeftOut,
        /// The packages or patches could not be downloaded.
        DownloadFailed,
        /// The floating address did not move to another server.
        HandOverFailed,
        /// The pods could not be taken off the node.
        DrainFailed,
        /// The package manager, or what installs live patches, failed.
        InstallFailed,
        /// The host rebooted, or the program died, while it installed.
        Crashed,
        /// It hung while it installed.
        Hung,
        /// The host did not reboot.
        RebootFailed,
        /// The node was not as well as before in time.
        NotVerified,
    }
}
