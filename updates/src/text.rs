/// Gives a type with `FromStr<Err = Invalid>` and `Display` its serde form, which is that text, and its schema: a string
/// that matches `pattern`, in the syntax that Go and Rust share. Only what the pattern takes can be one; what it takes may
/// still be refused, as 30 February is.
macro_rules! text_type {
    ($t:ident, pattern: $pattern:expr, max: $max:expr, $description:expr) => {
        crate::text::text_type!($t, { "type": "string", "pattern": $pattern, "maxLength": $max, "description": $description });
    };
    ($t:ident, { $($schema:tt)* }) => {
        impl serde::Serialize for $t {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
        impl schemars::JsonSchema for $t {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($t).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ $($schema)* })
            }
        }
    };
}
pub(crate) use text_type;
