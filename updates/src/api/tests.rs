use proptest::prelude::*;
use proptest::string::string_regex;
use serde_json::Value;

use super::*;
use crate::{PackageName, PatchName, Policy, Schedule, Span, Stage, Zone};

fn schemas() -> Vec<(String, Value)> {
    let each = |crd: CustomResourceDefinition| {
        let crd = serde_json::to_value(crd).unwrap();
        let version = &crd["spec"]["versions"][0];
        (crd["metadata"]["name"].as_str().unwrap().to_owned(), version["schema"]["openAPIV3Schema"].clone())
    };
    crds().into_iter().map(each).collect()
}

/// Every schema below `schema`, with its path; those within allOf are marked, since they may only hold values against.
fn all<'a>(path: &str, schema: &'a Value, logical: bool, out: &mut Vec<(String, bool, &'a Value)>) {
    out.push((path.to_owned(), logical, schema));
    let Some(object) = schema.as_object() else { return };
    for (key, value) in object {
        match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => {
                properties.iter().for_each(|(name, schema)| all(&format!("{path}.{name}"), schema, logical, out));
            }
            ("items" | "additionalProperties", schema) => all(&format!("{path}[]"), schema, logical, out),
            ("allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => schemas.iter().for_each(|s| all(path, s, true, out)),
            ("not", schema) => all(path, schema, true, out),
            _ => {}
        }
    }
}

/// The rules of "Specifying a structural schema" in Kubernetes' documentation of custom resources, and what Kubernetes 1.20 does
/// not know.
#[test]
fn structural_for_every_kubernetes_since_1_19() {
    for (name, schema) in schemas() {
        let mut found = Vec::new();
        all(&name, &schema, false, &mut found);
        assert!(found.len() > 15, "{name}");
        for (path, logical, schema) in found {
            let has = |key: &str| schema.get(key).is_some();
            for forbidden in ["$ref", "definitions", "dependencies", "$defs", "uniqueItems", "x-kubernetes-validations", "const"] {
                assert!(!has(forbidden), "{path} has {forbidden}");
            }
            assert!(!(has("properties") && has("additionalProperties")), "{path}");
            let null = schema.get("enum").is_some_and(|values| values.as_array().unwrap().contains(&Value::Null));
            assert!(!null, "{path}: Kubernetes 1.20 does not take null in an enumeration");
            assert!(!schema.get("default").is_some_and(|d| d == ""), "{path}: Kubernetes 1.20 takes an empty text for null");
            if logical {
                for forbidden in ["description", "type", "default", "additionalProperties", "nullable"] {
                    assert!(!has(forbidden), "{path} has {forbidden} in a logical part");
                }
            } else {
                let either = schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
                assert!(schema["type"].is_string() != either, "{path} has no type: {schema}");
                assert!(schema["type"] != "array" || has("items"), "{path}");
                let of_kubernetes = path.contains(".conditions[]");
                assert!(has("description") || of_kubernetes || path.ends_with("[]") || path == name, "{path} has no description");
            }
        }
    }
}

/// kubectl reads YAML 1.1, in which these are booleans (YAML 1.1, "Boolean Language-Independent Type"): such a key would not get here.
#[test]
fn no_name_is_a_boolean_of_yaml() {
    for (name, schema) in schemas() {
        let mut found = Vec::new();
        all(&name, &schema, false, &mut found);
        for (path, ..) in found {
            let key = path.rsplit('.').next().unwrap().to_lowercase();
            assert!(!["y", "yes", "n", "no", "true", "false", "on", "off"].contains(&key.as_str()), "{path}");
        }
    }
    let spec: UpdateManagerSpec = serde_json::from_str(r#"{"notify":{"events":["failed"]}}"#).unwrap();
    let notify = spec.notify.unwrap();
    assert!(notify.wants(settings::Notice::Failed) && !notify.wants(settings::Notice::Done));
}

#[test]
fn names_are_the_reference_s() {
    use crate::names::{GROUP, VERSION};
    let [manager, node] = crds();
    for crd in [&manager, &node] {
        assert_eq!((crd.spec.group.as_str(), crd.spec.versions[0].name.as_str(), crd.spec.scope.as_str()), (GROUP, VERSION, "Namespaced"));
    }
    let names = &manager.spec.names;
    assert_eq!(
        (names.kind.as_str(), names.plural.as_str(), names.singular.as_deref()),
        ("UpdateManager", "updatemanagers", Some("updatemanager"))
    );
    // 7.4.6: what a vendor's operator writes is read
    let status: UpdateManagerStatus = serde_json::from_str(
        r#"{"nodes":[{"id":"node1.example.local","kernel":"3.10.0-1160.21.1.vz7.174.10","readyKernel":{"reason":"ManuallySuspended",
            "status":"Suspended"},"rpmPackages":{"numberOfPackagesToUpdate":1,"status":"Strange"},"stageName":"stable"}]}"#,
    )
    .unwrap();
    let node = &status.nodes[0];
    assert_eq!(node.ready_kernel.reason, Some(Reason::ManuallySuspended));
    assert_eq!((&node.rpm_packages.status, node.stage_name), (&State::Other("Strange".into()), Some(Stage::Stable)));
    assert_eq!(Reason::WindowClosed.meaning(), "No maintenance window is open");
    // 7.4.3, 7.4.4
    let spec = r#"{"maintenanceWindows":[{"duration":"1h30m","schedule":"0 1 * * 1-5"}],"bannedPackages":["bash-4.2.46-34.vl7.x86_64"],
        "bannedPatches":["123-4-r5"],"suspend":true}"#;
    let spec: UpdateManagerSpec = serde_json::from_str(spec).unwrap();
    assert!(spec.suspend && spec.suspend_storage_nodes);
    assert!(
        serde_json::from_str::<UpdateManagerSpec>("{}").unwrap() == UpdateManagerSpec { suspend_storage_nodes: true, ..Default::default() }
    );
}

fn pattern(value: &Value) -> Vec<regex::Regex> {
    let of = |v: &Value| regex::Regex::new(v["pattern"].as_str().unwrap()).unwrap();
    value.get("allOf").map_or_else(|| vec![of(value)], |all| all.as_array().unwrap().iter().map(of).collect())
}

fn schema<T: schemars::JsonSchema>() -> Value {
    T::json_schema(&mut schemars::SchemaGenerator::default()).to_value()
}

/// Whether the API server would take `text`: patterns and length.
fn taken(schema: &Value, text: &str) -> bool {
    let short = u64::try_from(text.chars().count()).unwrap() <= schema["maxLength"].as_u64().unwrap();
    short && pattern(schema).iter().all(|p| p.is_match(text))
}

fn agree<T: schemars::JsonSchema + std::str::FromStr + std::fmt::Display>(text: &str) {
    let schema = schema::<T>();
    match text.parse::<T>() {
        Ok(value) => {
            let shown = value.to_string();
            assert!(taken(&schema, &shown), "{text} is {shown}, which the API server refuses");
            assert_eq!(shown.parse::<T>().map(|v| v.to_string()).ok(), Some(shown));
        }
        Err(_) => assert!(!taken(&schema, text), "the API server takes {text}"),
    }
}

#[test]
fn the_server_and_the_types_agree() {
    for zone in jiff::tz::TimeZoneDatabase::bundled().available() {
        agree::<Zone>(zone.as_str());
    }
    for bad in ["", "Europe//Berlin", "/UTC", "a/b/c/d", "Europe/Berlin ", "+1"] {
        agree::<Zone>(bad);
    }
    for span in [
        "",
        "h",
        "m",
        "0m",
        "0h",
        "0h0m",
        "00h00m",
        "0h1m",
        "1h",
        "1h5m",
        "1h60m",
        "59m",
        "90m",
        "168h",
        "168h1m",
        "169h",
        "1h30",
        "-1h",
        "1h-1m",
        "1 h",
        "30s",
        "1.5h",
        "9999999999h",
        "+5m",
    ] {
        agree::<Span>(span);
    }
    for patch in ["", "1-2-r3", "1-2-3", "01-2-r3", "1-2-r", "-1-2-r3", "1-2-r3 ", "999999999-0-r0", "1000000000-0-r0", "+1-2-r3"] {
        agree::<PatchName>(patch);
    }
    for name in [
        "bash-4.2.46-34.vl7.x86_64",
        "bash-4.2.46-34.vl7",
        "bash",
        "",
        "a-b-c",
        "a-b-c.noarch",
        "-b-c.noarch",
        "a--c.noarch",
        "a-b-.noarch",
        "gtk2-engines-2:2.20.2-1.fc38.i686",
        "a-x:1-1.noarch",
        "a-01:1-1.noarch",
        "a-:1-1.noarch",
        "a-1:2:3-1.noarch",
        "java-1.8.0-openjdk-1:1.8.0.372.b07-1.el8_7.x86_64",
        "libstdc++-12.2.1-4.fc37~rc1^git1.aarch64",
        "a b-1-1.noarch",
        "kernel-6.1-1.x86_65",
        "_x-1-1.s390x",
        "%{x}-1-1.noarch",
        "bash=5.2.15-2+b8",
        "libc6:amd64=2.36-9+deb12u10",
        "g++=4:12.2.0-3",
        "a=1",
        "ab=",
        "ab=a1",
        "ab=1-",
        "ab=1:2:3",
        "Ab=1",
        "ab=1_2",
        "ab:=1",
        "ab:amd64:x=1",
        "ab=1=2",
        "ab=1~rc1-1~bpo12+1",
        "ab=0:1",
        "ab=00:1",
        "ab=4294967296:1",
        "ab=x:1",
        "ab=1-1-1",
        "+ab=1",
    ] {
        agree::<PackageName>(name);
    }
    agree::<PackageName>(&format!("{}-1-1.noarch", "a".repeat(255)));
    for text in ["fast", "slow", "stable", "auto", "", "Fast"] {
        let valid = |schema: Value| schema["enum"].as_array().unwrap().iter().any(|v| v == text);
        assert_eq!(text.parse::<Stage>().is_ok(), valid(schema::<Stage>()));
        assert_eq!(text.parse::<Policy>().is_ok(), valid(schema::<Policy>()));
    }
}

#[test]
fn says_what_is_wrong_and_what_is_right() {
    let span = |s: &str| s.parse::<Span>().unwrap_err().to_string();
    let zone = |s: &str| s.parse::<Zone>().unwrap_err().to_string();
    let package = |s: &str| s.parse::<PackageName>().unwrap_err().to_string();
    let spans = ["", "90", "1h60m", "0m", "169h", "-1h", "99999999999h"].map(span);
    let zones = ["", "Europe/Berln", "Mars/Olympus"].map(zone);
    let packages =
        ["bash", "bash-4.2.46-34.vl7", "b@sh-1-1.noarch", "a-x:1-1.noarch", "Bash=1", "bash=x", "bash:=1", "bash=x:1"].map(package);
    let others = ["123-4-5".parse::<PatchName>().unwrap_err(), "now".parse::<Policy>().unwrap_err(), "auto".parse::<Stage>().unwrap_err()];
    let others = others.map(|e| e.to_string());
    insta::assert_snapshot!([&spans[..], &zones, &packages, &others].concat().join("\n"), @r"
    duration '': is not of the form 1h30m, 2h or 45m (hours and minutes, whole numbers)
    duration '90': is not of the form 1h30m, 2h or 45m (hours and minutes, whole numbers)
    duration '1h60m': has more than 59 minutes beside its hours
    duration '0m': must be more than nothing
    duration '169h': is longer than a week (168h)
    duration '-1h': is not of the form 1h30m, 2h or 45m (hours and minutes, whole numbers)
    duration '99999999999h': is longer than a week (168h)
    time zone '': is not in the time zone database; write for example Europe/Berlin or UTC
    time zone 'Europe/Berln': is not in the time zone database; did you mean Europe/Berlin?
    time zone 'Mars/Olympus': is not in the time zone database; write for example Europe/Berlin or UTC
    package 'bash': is not of the form <name>-<version>-<release>.<arch>, as in bash-4.2.46-34.vl7.x86_64, nor <name>=<version>, as in bash=5.2.15-2+b8
    package 'bash-4.2.46-34.vl7': has no architecture at its end; write for example bash-4.2.46-34.vl7.x86_64
    package 'b@sh-1-1.noarch': has a name that rpm does not allow: 'b@sh'
    package 'a-x:1-1.noarch': has an epoch that is not a number
    package 'Bash=1': has a name that Debian does not allow: 'Bash'
    package 'bash=x': has a version that Debian does not allow; write for example bash=5.2.15-2+b8
    package 'bash:=1': has an architecture that is not one, after the ':' in its name
    package 'bash=x:1': has an epoch that is not a number
    patch '123-4-5': is not of the form X-Y-rZ, as in 123-4-r5
    policy 'now': is none of fast, slow, stable and auto
    stage 'auto': is none of fast, slow and stable
    ");
}

/// What any of `T`'s patterns takes, the first where there are several.
fn from_pattern<T: schemars::JsonSchema>() -> impl Strategy<Value = String> {
    let schema = schema::<T>();
    let text = pattern(&schema)[0].as_str().trim_start_matches('^').trim_end_matches('$').to_owned();
    string_regex(&text).unwrap()
}

fn cron_field() -> impl Strategy<Value = String> {
    string_regex(r"(\*|[0-9]{1,2}|[a-z]{3})(-([0-9]{1,2}|FRI|dec))?(/[0-9]{1,2})?(,(\*|[0-9]{1,2})(-[0-9]{1,2})?(/[0-9])?)?").unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_the_server_takes_can_be_read(span in from_pattern::<Span>(), patch in from_pattern::<PatchName>(), package in from_pattern::<PackageName>()) {
        prop_assert!(span.parse::<Span>().is_ok(), "{span}");
        prop_assert!(patch.parse::<PatchName>().is_ok(), "{patch}");
        prop_assert!(package.len() > 255 || package.parse::<PackageName>().is_ok(), "{package}");
    }

    #[test]
    fn any_text_is_refused_by_both_or_neither(text in "[a-z0-9:=.~+^_-]{1,20}(\\.noarch|\\.x86_64)?", span in "[0-9]{0,3}h?[0-9]{0,4}m?") {
        agree::<PackageName>(&text);
        if span.parse::<Span>().is_ok() { agree::<Span>(&span); }
    }

    #[test]
    fn schedules_too(fields in prop::collection::vec(cron_field(), 4..=6)) {
        let text = fields.join(" ");
        let server = taken(&schema::<Schedule>(), &text);
        match text.parse::<Schedule>() {
            Ok(schedule) => prop_assert!(server && taken(&schema::<Schedule>(), &schedule.to_string()), "the API server refuses {text}"),
            // a pattern cannot compare: ranges that end before they begin, days that no month has
            Err(e) => prop_assert!(!server || e.why.contains("ends before it begins") || e.why.starts_with("never comes"), "{e}"),
        }
    }
}
