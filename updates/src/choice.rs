/// An enum whose words a user writes or the controller decides on: each is known, and no other is taken.
macro_rules! choice {
    ($(#[$doc:meta])* $t:ident, $what:literal, $about:literal { $($(#[$meta:meta])+ $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub enum $t {
            $($(#[$meta])+ $variant,)+
        }

        impl $t {
            /// All of them, in their order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its word in the API.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $t {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $t {
            type Err = cluster::Invalid;
            fn from_str(s: &str) -> Result<Self, cluster::Invalid> {
                match s {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(cluster::Invalid::new($what, s, concat!("is none of", $(" ", $word),+))),
                }
            }
        }

        crate::text::text_type!($t, { "type": "string", "enum": [$($word),+], "description": $about });
    };
}
pub(crate) use choice;
