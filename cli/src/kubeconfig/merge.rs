use node::{Error, Result};

use super::admin::{Admin, Part, entry, items};
use super::edit::{Edits, Value};
use super::yaml::{Kind, Node, Unreadable};

/// What a merge does to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Our entries are new in it, or some of them.
    Added,
    /// Our entries were there.
    Updated,
}

/// The outcome.
pub struct Merged {
    /// What the file shall hold. A secret.
    pub text: String,
    /// What that changes.
    pub change: Change,
    /// The current context then.
    pub current: Option<String>,
}

const REPAIR: &str = "it was not touched: repair it, or name another file with --kubeconfig";

/// Puts `ours` into a kubeconfig.
///
/// Every byte that is not ours stays: other entries, unknown fields, comments, order, layout. Entries of ours that are there
/// (same name, same URL) get the CA, certificate and key of now; what the user added to them, such as a namespace, stays.
/// The current context stays too, unless `use_context`, or unless the file has neither one nor any context at all.
///
/// # Errors
/// Invalid, when the text is not a kubeconfig; refused, when an entry of that name is somebody else's; failed, when the text
/// is laid out so that it cannot be changed safely. No error quotes the text.
pub fn merge(existing: Option<&str>, ours: &Admin, use_context: bool) -> Result<Merged> {
    let text = existing.unwrap_or_default();
    let root = Node::parse(text)?;
    // comments and a document's marker are all that there is
    let root = root.filter(|r| !(r.is_null() && r.at.is_empty()));
    let mut edits = Edits::of(text);
    let (change, current) = if let Some(root) = &root {
        check(root)?;
        let before = current(root)?;
        let takes = use_context || (before.is_none() && items(root, "contexts")?.is_empty());
        let change = update(root, ours, takes, &mut edits)?;
        (change, if takes { Some(ours.name.as_str()) } else { before })
    } else {
        edits.append(&ours.document());
        (Change::Added, Some(ours.name.as_str()))
    };
    let merged = edits.apply();
    if !is_as_wanted(&merged, root.as_ref(), ours, current) {
        return Err(Error::failed("this is laid out in a way that cannot be changed safely")
            .hint("name another file with --kubeconfig, and list both of them in $KUBECONFIG"));
    }
    let change = if existing == Some(merged.as_str()) { Change::None } else { change };
    let current = current.map(str::to_owned);
    Ok(Merged { text: merged, change, current })
}

impl From<Unreadable> for Error {
    fn from(e: Unreadable) -> Self {
        Self::invalid(format!("this cannot be read as a kubeconfig: {e}")).hint(REPAIR)
    }
}

/// Whether it is a kubeconfig at all; kubectl takes one without `kind` and `apiVersion` too.
fn check(root: &Node) -> Result<()> {
    const KEYS: [&str; 7] = ["apiVersion", "kind", "clusters", "contexts", "users", "current-context", "preferences"];
    let says = |key, wanted| root.get(key).map(|v| v.is_none_or(|v| v.text() == Some(wanted)));
    let keys: Vec<_> = root.keys().collect();
    if matches!(root.kind, Kind::Mapping { .. })
        && (keys.is_empty() || keys.iter().any(|k| KEYS.contains(k)))
        && says("kind", "Config")?
        && says("apiVersion", "v1")?
    {
        return Ok(());
    }
    Err(Error::invalid("this is not a kubeconfig").hint(REPAIR))
}

fn current(root: &Node) -> Result<Option<&str>, Unreadable> {
    Ok(root.get("current-context")?.filter(|v| !v.is_null()).and_then(Node::text).filter(|t| !t.is_empty()))
}

/// Makes the changes, or says whose the entries of that name are.
fn update(root: &Node, ours: &Admin, takes: bool, edits: &mut Edits<'_>) -> Result<Change> {
    let name = ours.name.as_str();
    let rebuilt = entry(root, "clusters", name)?.is_some();
    let (mut missing, mut change) = (Vec::new(), Change::Updated);
    for part in ours.parts() {
        if let Some(found) = entry(root, part.list, name)? {
            let body = found.get(part.kind)?;
            let why = body.map_or(Ok(Some("with nothing in it")), |body| foreign(&part, body, rebuilt))?;
            if let Some(why) = why {
                return Err(Error::refused(format!("there is a {} \"{name}\" in it already, {why}", part.kind))
                    .hint(format!("choose another name with --name, or remove that one: kubectl config delete-{} {name}", part.kind)));
            }
            if let Some(body) = body {
                edits.set(body, &part.fields);
            }
            continue;
        }
        change = Change::Added;
        match root.get(part.list)? {
            Some(list) => edits.push(root, list, part.entry(name)),
            None => missing.push((part.list, Value::List(vec![part.entry(name)]))),
        }
    }
    match root.get("current-context")? {
        Some(_) if takes => edits.set(root, &[("current-context", name)]),
        None if takes => missing.push(("current-context", Value::Text(name))),
        _ => {}
    }
    edits.add(root, missing);
    Ok(change)
}

/// Why an entry of our name is not ours; None = it is. The cluster's URL tells: a cluster that was built anew behind the same
/// VIP has the same one, with another CA.
fn foreign(part: &Part<'_>, body: &Node, rebuilt: bool) -> Result<Option<&'static str>, Unreadable> {
    let mut same = Vec::new();
    for (key, value) in part.fields {
        same.push(body.get(key)?.is_some_and(|v| v.text() == Some(value)));
    }
    let has = |key| body.keys().any(|k| k == key);
    let others = || body.keys().any(|k| k != "extensions" && part.fields.iter().all(|(key, _)| *key != k));
    Ok(match (part.kind, same.as_slice()) {
        ("cluster", [_, false]) => Some("which is at another URL"),
        ("cluster", _) if has("insecure-skip-tls-verify") || has("certificate-authority") => {
            Some("whose certificate is checked in another way")
        }
        ("context", [false, _] | [_, false]) => Some("which is for another cluster or user"),
        ("user", _) if others() => Some("who logs in in another way"),
        ("user", [false, _] | [_, false]) if !rebuilt => Some("without a cluster of that name"),
        _ => None,
    })
}

/// Whether the changes did what they were to do: the text is read anew, which gives our access and what there was before.
fn is_as_wanted(merged: &str, before: Option<&Node>, ours: &Admin, context: Option<&str>) -> bool {
    let Ok(Some(root)) = Node::parse(merged) else { return false };
    let name = ours.name.as_str();
    Admin::read(&root, name).is_ok_and(|admin| admin == *ours)
        && current(&root) == Ok(context)
        && before.is_none_or(|before| others(before, name) == others(&root, name))
}

/// All that is not ours: the document's keys, in the lists without the entries of our name, and without what is empty.
fn others<'a>(root: &'a Node, name: &str) -> Vec<(&'a Node, Vec<&'a Node>)> {
    let Kind::Mapping { pairs, .. } = &root.kind else { return Vec::new() };
    let is_ours = |entry: &Node| entry.get("name").is_ok_and(|n| n.and_then(Node::text) == Some(name));
    let rest = |(key, value): &'a (Node, Node)| {
        let rest = match (key.text().unwrap_or_default(), &value.kind) {
            ("current-context", _) => Vec::new(),
            ("clusters" | "contexts" | "users", Kind::Sequence { items, .. }) => items.iter().filter(|i| !is_ours(i)).collect(),
            ("clusters" | "contexts" | "users", _) if value.is_null() => Vec::new(),
            _ => vec![value],
        };
        (!rest.is_empty()).then_some((key, rest))
    };
    pairs.iter().filter_map(rest).collect()
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use proptest::prelude::*;
    use serde_json::Value as Json;

    use super::*;
    use crate::kubeconfig::Name;

    fn k3s_yaml(which: &str) -> String {
        format!(
            "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {which}CA==\n    server: https://127.0.0.1:9443\n  name: default\n\
             contexts:\n- context:\n    cluster: default\n    user: default\n  name: default\ncurrent-context: default\nkind: Config\n\
             preferences: {{}}\nusers:\n- name: default\n  user:\n    client-certificate-data: {which}CERT\n    client-key-data: {which}KEY=\n"
        )
    }

    fn admin_of(which: &str) -> Admin {
        let name = Name::of_vip([10, 0, 0, 10].into());
        Admin::parse(&k3s_yaml(which), "https://10.0.0.10:9443".into(), name).map_err(|e| e.chain()).unwrap()
    }

    fn admin() -> Admin {
        admin_of("LS0t")
    }

    fn merged(existing: &str) -> String {
        merge(Some(existing), &admin(), false).map_err(|e| e.chain()).unwrap().text
    }

    fn refused(existing: &str) -> String {
        let e = merge(Some(existing), &admin(), false).err().unwrap();
        assert!(!existing.contains("SECRET") || !format!("{e:?}").contains("SECRET"));
        format!("{:?}: {}\n{}\n", e.kind, e.chain(), e.hint.unwrap_or_default())
    }

    #[test]
    fn what_is_printed() {
        assert_snapshot!(admin().expose(), @"
        apiVersion: v1
        clusters:
        - cluster:
            certificate-authority-data: LS0tCA==
            server: https://10.0.0.10:9443
          name: smartup-10.0.0.10
        contexts:
        - context:
            cluster: smartup-10.0.0.10
            user: smartup-10.0.0.10
          name: smartup-10.0.0.10
        current-context: smartup-10.0.0.10
        kind: Config
        users:
        - user:
            client-certificate-data: LS0tCERT
            client-key-data: LS0tKEY=
          name: smartup-10.0.0.10
        ");
    }

    #[test]
    fn a_file_that_is_not_there_or_empty_gets_all_of_it() {
        let new = merge(None, &admin(), false).map_err(|e| e.chain()).unwrap();
        assert_eq!((new.text.as_str(), new.change), (admin().expose().as_str(), Change::Added));
        assert_eq!(new.current.as_deref(), Some("smartup-10.0.0.10"));
        assert_eq!(merged(""), admin().expose());
        assert_eq!(merged("# mine\n"), format!("# mine\n{}", admin().expose()));
        assert_eq!(merged("---\n"), format!("---\n{}", admin().expose()));
    }

    #[test]
    fn other_entries_stay_byte_by_byte() {
        assert_snapshot!(merged(
            "# my clusters\napiVersion: v1\nkind: Config\npreferences: {}\ncurrent-context: prod # careful\nclusters:\n  \
             - name: prod\n    cluster: {server: 'https://prod', proxy-url: \"socks5://x\"}   # the real one\n\n\
             users:\n- user:\n    exec:\n      command: aws\n      args: [eks, get-token]\n  name: admin\n\
             contexts:\n# work\n- context: {cluster: prod, user: admin}\n  name: prod\nx-mine:\n- 0777\n- yes\n"
        ), @r#"
        # my clusters
        apiVersion: v1
        kind: Config
        preferences: {}
        current-context: prod # careful
        clusters:
          - name: prod
            cluster: {server: 'https://prod', proxy-url: "socks5://x"}   # the real one
          - cluster:
              certificate-authority-data: LS0tCA==
              server: https://10.0.0.10:9443
            name: smartup-10.0.0.10

        users:
        - user:
            exec:
              command: aws
              args: [eks, get-token]
          name: admin
        - user:
            client-certificate-data: LS0tCERT
            client-key-data: LS0tKEY=
          name: smartup-10.0.0.10
        contexts:
        # work
        - context: {cluster: prod, user: admin}
          name: prod
        - context:
            cluster: smartup-10.0.0.10
            user: smartup-10.0.0.10
          name: smartup-10.0.0.10
        x-mine:
        - 0777
        - yes
        "#);
    }

    #[test]
    fn what_kubectl_writes_when_there_is_nothing() {
        assert_snapshot!(merged(
            "apiVersion: v1\nclusters: null\ncontexts: []\ncurrent-context: \"\"\nkind: Config\npreferences: {}\nusers: # none yet\n"
        ), @"
        apiVersion: v1
        clusters:
        - cluster:
            certificate-authority-data: LS0tCA==
            server: https://10.0.0.10:9443
          name: smartup-10.0.0.10
        contexts:
        - context:
            cluster: smartup-10.0.0.10
            user: smartup-10.0.0.10
          name: smartup-10.0.0.10
        current-context: smartup-10.0.0.10
        kind: Config
        preferences: {}
        users: # none yet
        - user:
            client-certificate-data: LS0tCERT
            client-key-data: LS0tKEY=
          name: smartup-10.0.0.10
        ");
    }

    #[test]
    fn json_stays_json() {
        let text = merged(r#"{"kind": "Config", "clusters": [], "contexts": [{"name": "a", "context": {}}], "current-context": "a"}"#);
        assert!(serde_json::from_str::<Json>(&text).is_ok());
        assert_snapshot!(text, @r#"{"kind": "Config", "clusters": [{"cluster": {"certificate-authority-data": "LS0tCA==", "server": "https://10.0.0.10:9443"}, "name": "smartup-10.0.0.10"}], "contexts": [{"name": "a", "context": {}}, {"context": {"cluster": "smartup-10.0.0.10", "user": "smartup-10.0.0.10"}, "name": "smartup-10.0.0.10"}], "current-context": "a", "users": [{"user": {"client-certificate-data": "LS0tCERT", "client-key-data": "LS0tKEY="}, "name": "smartup-10.0.0.10"}]}"#);
    }

    #[test]
    fn a_cluster_that_was_built_anew_is_brought_up_to_date() {
        let old = merged("current-context: prod\n")
            .replace("    user: smartup-10.0.0.10\n", "    user: smartup-10.0.0.10\n    namespace: mine\n");
        assert!(old.contains("namespace"));
        let new = merge(Some(&old), &admin_of("bmV3"), false).map_err(|e| e.chain()).unwrap();
        assert_eq!((new.change, new.current.as_deref()), (Change::Updated, Some("prod")));
        assert_eq!(new.text, old.replace("LS0t", "bmV3"));
    }

    #[test]
    fn what_our_entries_lack_is_added() {
        let name = "name: smartup-10.0.0.10";
        assert_snapshot!(merged(&format!(
            "clusters:\n  - {name}\n    cluster: # by hand\n      server: https://10.0.0.10:9443 # the VIP\n      proxy-url: x\nusers: [{{{name}, user: {{}}}}]"
        )), @r#"
        clusters:
          - name: smartup-10.0.0.10
            cluster: # by hand
              server: https://10.0.0.10:9443 # the VIP
              proxy-url: x
              certificate-authority-data: LS0tCA==
        users: [{name: smartup-10.0.0.10, user: {"client-certificate-data": "LS0tCERT", "client-key-data": "LS0tKEY="}}]
        contexts:
        - context:
            cluster: smartup-10.0.0.10
            user: smartup-10.0.0.10
          name: smartup-10.0.0.10
        current-context: smartup-10.0.0.10
        "#);
    }

    #[test]
    fn the_current_context_changes_only_when_asked() {
        let old = merged("current-context: prod\n");
        let used = merge(Some(&old), &admin(), true).map_err(|e| e.chain()).unwrap();
        assert_eq!((used.change, used.current.as_deref()), (Change::Updated, Some("smartup-10.0.0.10")));
        assert_eq!(used.text, old.replace("current-context: prod", "current-context: smartup-10.0.0.10"));
        // somebody has contexts and none that is current: that is a choice too
        let none = merge(Some("contexts:\n- name: a\n  context: {}\n"), &admin(), false).map_err(|e| e.chain()).unwrap();
        assert_eq!(none.current, None);
    }

    #[test]
    fn entries_of_others_are_never_taken() {
        let ours = admin().expose();
        let name = "name: smartup-10.0.0.10";
        let of = |from: &str, to: &str| refused(&ours.replacen(from, to, 1));
        assert_snapshot!([
            of("https://10.0.0.10:9443", "https://10.0.0.10:6443"),
            of("    server:", "    insecure-skip-tls-verify: true\n    server:"),
            of("    user: smartup-10.0.0.10", "    user: me"),
            of("    client-key-data:", "    token: SECRET\n    client-key-data:"),
            refused(&format!("users:\n- {name}\n  user: {{client-key-data: SECRET}}\n")),
            refused(&format!("clusters:\n- {name}\n")),
        ].concat(), @r#"
        Refused: there is a cluster "smartup-10.0.0.10" in it already, which is at another URL
        choose another name with --name, or remove that one: kubectl config delete-cluster smartup-10.0.0.10
        Refused: there is a cluster "smartup-10.0.0.10" in it already, whose certificate is checked in another way
        choose another name with --name, or remove that one: kubectl config delete-cluster smartup-10.0.0.10
        Refused: there is a context "smartup-10.0.0.10" in it already, which is for another cluster or user
        choose another name with --name, or remove that one: kubectl config delete-context smartup-10.0.0.10
        Refused: there is a user "smartup-10.0.0.10" in it already, who logs in in another way
        choose another name with --name, or remove that one: kubectl config delete-user smartup-10.0.0.10
        Refused: there is a user "smartup-10.0.0.10" in it already, without a cluster of that name
        choose another name with --name, or remove that one: kubectl config delete-user smartup-10.0.0.10
        Refused: there is a cluster "smartup-10.0.0.10" in it already, with nothing in it
        choose another name with --name, or remove that one: kubectl config delete-cluster smartup-10.0.0.10
        "#);
    }

    #[test]
    fn what_is_not_a_kubeconfig_is_refused() {
        assert_snapshot!([
            refused("users:\n- name: a\n  user: {token: SECRET\n"),
            refused("users:\n\t- SECRET"),
            refused("kind: Pod\napiVersion: v1\n"),
            refused("services: {web: {}}\n"),
            refused("- SECRET\n"),
            refused("SECRET"),
            refused("null\n"),
            refused("kind: Config\n---\nkind: Config\n"),
            refused("clusters: []\nclusters: []\n"),
            refused("users: &u []\nclusters: *u\n"),
            refused("users: {a: b}\n"),
            refused("users: [SECRET]\n"),
            refused("<<: {users: []}\nkind: Config\n"),
        ].concat(), @r#"
        Invalid: this cannot be read as a kubeconfig: line 3, column 9: unclosed bracket '{'
        it was not touched: repair it, or name another file with --kubeconfig
        Invalid: this cannot be read as a kubeconfig: line 2, column 2: tabs disallowed within this context (block indentation)
        it was not touched: repair it, or name another file with --kubeconfig
        Invalid: this is not a kubeconfig
        it was not touched: repair it, or name another file with --kubeconfig
        Invalid: this is not a kubeconfig
        it was not touched: repair it, or name another file with --kubeconfig
        Invalid: this is not a kubeconfig
        it was not touched: repair it, or name another file with --kubeconfig
        Invalid: this is not a kubeconfig
        it was not touched: repair it, or name another file with --kubeconfig
        Invalid: this is not a kubeconfig
        it was not touched: repair it, or name another file with --kubeconfig
        Invalid: this cannot be read as a kubeconfig: there is more than one document in it
        it was not touched: repair it, or name another file with --kubeconfig
        Invalid: this cannot be read as a kubeconfig: "clusters" is there twice, or given by an anchor, an alias, a merge key or a tag
        it was not touched: repair it, or name another file with --kubeconfig
        Invalid: this cannot be read as a kubeconfig: "clusters" is there twice, or given by an anchor, an alias, a merge key or a tag
        it was not touched: repair it, or name another file with --kubeconfig
        Invalid: this cannot be read as a kubeconfig: "users" is not a list of entries, each with a name of its own
        it was not touched: repair it, or name another file with --kubeconfig
        Invalid: this cannot be read as a kubeconfig: "users" is not a list of entries, each with a name of its own
        it was not touched: repair it, or name another file with --kubeconfig
        Invalid: this cannot be read as a kubeconfig: "kind" is there twice, or given by an anchor, an alias, a merge key or a tag
        it was not touched: repair it, or name another file with --kubeconfig
        "#);
    }

    #[test]
    fn k3ss_own_must_have_all_of_it() {
        let of = |text: &str| Admin::parse(text, String::new(), Name::of_vip([10, 0, 0, 10].into())).err().unwrap().chain();
        let all = k3s_yaml("LS0t");
        assert_snapshot!([
            of(""),
            of("a: ["),
            of(&all.replace("current-context: default\n", "")),
            of(&all.replace("  name: default\n", "  name: other\n")),
            of(&all.replace("    client-key-data: LS0tKEY=\n", "")),
            of(&all.replace("LS0tKEY=", "LS0tKEY")),
        ].join("\n"), @r#"
        the administrator's kubeconfig cannot be used: it is empty
        the administrator's kubeconfig cannot be used: line 1, column 4: unclosed bracket '['
        the administrator's kubeconfig cannot be used: there is no current-context in it
        the administrator's kubeconfig cannot be used: there is no context "default" in it
        the administrator's kubeconfig cannot be used: there is no client-key-data in it
        the administrator's kubeconfig cannot be used: client-key-data is not base64
        "#);
    }

    /// One of a kubeconfig's lists, as people and programs write it.
    #[derive(Debug, Clone)]
    enum List {
        Missing,
        Nothing(&'static str),
        Block(usize, Vec<Entry>),
        Flow(Vec<Entry>),
    }

    #[derive(Debug, Clone)]
    struct Entry {
        name: String,
        value: &'static str,
        comment: bool,
        in_braces: bool,
    }

    #[derive(Debug, Clone)]
    struct File {
        lists: [List; 3],
        order: Vec<usize>,
        current: Option<&'static str>,
        braces: bool,
        windows: bool,
        head: &'static str,
        no_last_break: bool,
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        // what YAML 1.1 and 1.2 read differently, what needs its quotes, and what goes over lines
        let values =
            ["yes", "0777", "1.10", "~", "it's", "plain text", "a:b#c", "'# no: comment'", "\"\\t\\u00e9 \"", "[1, {a: b}]", "{}", "é"];
        let entry = ("[a-z0-9]{1,8}", prop::sample::select(values.to_vec()), any::<bool>(), any::<bool>());
        let entry = entry.prop_map(|(name, value, comment, in_braces)| Entry { name: format!("n-{name}"), value, comment, in_braces });
        prop::collection::vec(entry, 1..4)
    }

    fn list() -> impl Strategy<Value = List> {
        prop_oneof![
            Just(List::Missing),
            prop::sample::select(vec!["", " null", " ~", " []", " [ ]"]).prop_map(List::Nothing),
            (0..4_usize, entries()).prop_map(|(indent, entries)| List::Block(indent, entries)),
            entries().prop_map(List::Flow),
        ]
    }

    fn file() -> impl Strategy<Value = File> {
        let current = prop::option::of(prop::sample::select(vec!["", " \"\"", " null", " n-a", " 'n-b' # mine"]));
        let head = prop::sample::select(vec!["", "# head\n---\n", "\u{feff}"]);
        let flags = (any::<bool>(), any::<bool>(), any::<bool>());
        let order = Just((0..6).collect::<Vec<_>>()).prop_shuffle();
        ([list(), list(), list()], order, current, head, flags).prop_map(|(lists, order, current, head, flags)| {
            let (braces, windows, no_last_break) = flags;
            File { lists, order, current, braces, windows, head, no_last_break }
        })
    }

    impl File {
        fn text(&self) -> String {
            let flow = |kind: &str, e: &Entry| format!("{{\"{kind}\": {{k: {}}}, name: {}}}", e.value, e.name);
            let flow_list =
                |kind, entries: &[Entry]| format!(" [{}]", entries.iter().map(|e| flow(kind, e)).collect::<Vec<_>>().join(",\n    "));
            let list = |n: usize| {
                let (key, kind) = [("clusters", "cluster"), ("contexts", "context"), ("users", "user")][n];
                let value = match &self.lists[n] {
                    List::Missing => return None,
                    List::Nothing(text) => (*text).to_owned(),
                    List::Block(_, entries) if self.braces => flow_list(kind, entries),
                    List::Flow(entries) => flow_list(kind, entries),
                    List::Block(indent, entries) => {
                        let pad = " ".repeat(*indent);
                        let entry = |e: &Entry| {
                            let comment = if e.comment { "  # note: mine" } else { "" };
                            if e.in_braces {
                                format!("\n{pad}- {}{comment}", flow(kind, e))
                            } else {
                                format!("\n{pad}-   {kind}:\n{pad}     k: {}{comment}\n\n{pad}    name: {}{comment}", e.value, e.name)
                            }
                        };
                        entries.iter().map(entry).collect()
                    }
                };
                Some(format!("{key}:{value}"))
            };
            let part = |n: &usize| match n {
                0..=2 => list(*n),
                3 => self.current.map(|c| format!("current-context:{c}")),
                4 => Some("kind: Config".to_owned()),
                _ if self.braces => Some("x: [yes, 08]".to_owned()),
                _ => Some("x: |\n  lines\n\n  of: [text\n".to_owned()),
            };
            let parts: Vec<_> = self.order.iter().filter_map(part).collect();
            let mut text = if self.braces { format!("{{{}\n}}\n", parts.join("\n, ")) } else { parts.join("\n") + "\n" };
            text.insert_str(0, self.head);
            // a block at the very end has a break of its own or not, as its reader likes
            if self.no_last_break && !text.ends_with("[text\n\n") {
                text.truncate(text.trim_end().len());
            }
            if self.windows { text.replace('\n', "\r\n") } else { text }
        }
    }

    /// What a YAML reader of its own makes of it, without our entries and what is empty.
    fn rest(text: &str) -> Json {
        let mut all: Json = serde_saphyr::from_str(text).unwrap();
        let map = all.as_object_mut().unwrap();
        map.remove("current-context");
        for key in ["clusters", "contexts", "users"] {
            let list = map.remove(key).unwrap_or_default();
            let others: Vec<_> = list.as_array().into_iter().flatten().filter(|e| e["name"] != "smartup-10.0.0.10").cloned().collect();
            map.insert(key.into(), others.into());
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn nothing_of_others_changes(file in file(), use_context: bool) {
            let old = file.text();
            let before = Node::parse(&old).unwrap().unwrap();
            let once = merge(Some(&old), &admin(), use_context).map_err(|e| e.chain());
            prop_assert!(once.is_ok(), "{:?} of\n{old}", once.err());
            let once = once.unwrap();
            prop_assert_eq!(once.change, Change::Added);
            prop_assert_eq!(rest(&once.text), rest(&old), "of\n{}", old);
            // every line of before is there in its order, where no bracket had to be opened for our entry
            if !file.braces && file.lists.iter().all(|l| matches!(l, List::Missing | List::Block(..))) {
                let mut new = once.text.lines();
                for line in old.lines().filter(|l| !l.contains("current-context")) {
                    prop_assert!(new.any(|l| l == line), "{line:?} of\n{old}\nis not in\n{}", once.text);
                }
            }
            prop_assert!(!file.windows || !once.text.replace("\r\n", "").contains('\n'));

            let had = current(&before).unwrap();
            let any = !items(&before, "contexts").unwrap().is_empty();
            let expected = if use_context || (had.is_none() && !any) { Some("smartup-10.0.0.10") } else { had };
            prop_assert_eq!(once.current.as_deref(), expected);

            let twice = merge(Some(&once.text), &admin(), use_context).map_err(|e| e.chain()).unwrap();
            prop_assert_eq!(twice.change, Change::None);
            prop_assert_eq!(&twice.text, &once.text);

            let rebuilt = merge(Some(&once.text), &admin_of("bmV3"), false).map_err(|e| e.chain()).unwrap();
            prop_assert_eq!(rebuilt.change, Change::Updated);
            prop_assert_eq!(rebuilt.text, once.text.replace("LS0t", "bmV3"));
        }

        #[test]
        fn no_text_at_all_is_too_much(text in "[-a-z:# \\[\\]{},'\"|>&*~!\r\n\té]{0,60}", head in prop::sample::select(vec!["", "users:", "users:\n- name: "])) {
            let text = format!("{head}{text}");
            let old = if Node::parse(&text).is_ok_and(|r| r.is_none_or(|r| r.is_null())) { "{}" } else { &text };
            if let (Ok(merged), Ok(_)) = (merge(Some(&text), &admin(), false), serde_saphyr::from_str::<Json>(old)) {
                let (mut new, old) = (rest(&merged.text), rest(old));
                new.as_object_mut().unwrap().retain(|key, _| old.get(key).is_some() || !["apiVersion", "kind"].contains(&key.as_str()));
                prop_assert_eq!(new, old);
            }
        }
    }
}
