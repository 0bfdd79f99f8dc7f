#![expect(dead_code, reason = "the shapes are only described, never made: `read` makes a Cluster at once")]

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

/// The JSON schema of cluster.yaml (draft 2020-12), for editors. It knows the keys and the forms of values, not the
/// rules between them.
pub fn schema() -> Value {
    // serde's defaults are null, which is refused; what happens without a key, its description says
    let without_defaults = RecursiveTransform(|schema: &mut Schema| {
        schema.remove("default");
    });
    SchemaSettings::draft2020_12().with_transform(without_defaults).into_generator().into_root_schema_for::<FileShape>().to_value()
}

/// A k3s cluster behind a floating address, for smartup.
#[derive(JsonSchema)]
#[schemars(title = "cluster.yaml", rename_all = "camelCase", deny_unknown_fields)]
struct FileShape {
    /// The floating address of the API, free and in the subnet of the servers, with or without a prefix.
    #[schemars(schema_with = "text")]
    vip: (),
    /// The hosts, at least one of them a server.
    #[schemars(length(min = 1))]
    hosts: Vec<HostShape>,
    /// Port of the API. Default: 9443.
    #[schemars(default, schema_with = "port")]
    port: (),
    /// File with the cluster's secret, relative to this file. Default: the first server makes one.
    #[schemars(default, schema_with = "text")]
    token_file: (),
    /// How the servers agree on who has the floating address.
    #[schemars(default)]
    vrrp: VrrpShape,
    #[schemars(flatten)]
    settings: SettingsShape,
}

#[derive(Default, JsonSchema)]
#[schemars(inline, rename_all = "camelCase", deny_unknown_fields)]
struct VrrpShape {
    /// File with a password of at most 8 characters: uses VRRP version 2. Not with IPv6.
    #[schemars(default, schema_with = "text")]
    auth_pass_file: (),
    /// Send adverts to each server's address, where the network has no multicast. Default: false.
    #[schemars(default, schema_with = "flag")]
    unicast: (),
}

/// A host.
#[derive(JsonSchema)]
#[schemars(inline, rename_all = "camelCase", deny_unknown_fields)]
struct HostShape {
    /// What ssh is told: a name, an address, or an alias of ~/.ssh/config.
    #[schemars(schema_with = "text")]
    host: (),
    /// server: control plane and etcd. agent: pods only.
    #[schemars(schema_with = "role")]
    role: (),
    /// Its own address. Default: the interface's address in the VIP's subnet.
    #[schemars(default, schema_with = "text")]
    node_ip: (),
    /// Fingerprint of the only host key that is accepted, as in SHA256:….
    #[schemars(default, schema_with = "text")]
    host_key: (),
    #[schemars(flatten)]
    settings: SettingsShape,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct SettingsShape {
    /// Interface of the VIP and of the pod network. Default: the one whose subnet holds the VIP.
    #[schemars(default, schema_with = "text")]
    interface: (),
    /// What runs the containers. Default: containerd.
    #[schemars(default, schema_with = "runtime")]
    runtime: (),
    /// Whether the firewall is opened for what the role needs. Default: true.
    #[schemars(default, schema_with = "flag")]
    firewall: (),
    /// Where k3s comes from: a path, or a version. Default: the one on the host.
    #[schemars(default)]
    k3s: K3sShape,
    /// Flags for k3s, each with its value: --disable=traefik. A host's own are added.
    #[schemars(default)]
    k3s_args: Vec<String>,
    /// Checks that may fail. A host's own are added.
    #[schemars(default)]
    ignore: Vec<String>,
    /// How long a host may take to be ready, as in 90s or 10m. Default: 10m.
    #[schemars(default, schema_with = "text")]
    timeout: (),
    /// How hosts are reached. Default: as ~/.ssh/config has it.
    #[schemars(default)]
    ssh: SshShape,
}

#[derive(Default, JsonSchema)]
#[schemars(inline, rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["path"]}, {"required": ["version"]}], "dependentRequired" = {"mirror": ["version"]}))]
struct K3sShape {
    /// A binary, relative to this file.
    #[schemars(default, schema_with = "text")]
    path: (),
    /// A release that the hosts download, as in v1.31.2+k3s1.
    #[schemars(default, schema_with = "text")]
    version: (),
    /// Where releases are, laid out as k3s's own: URL/VERSION/k3s.
    #[schemars(default, schema_with = "text")]
    mirror: (),
}

#[derive(Default, JsonSchema)]
#[schemars(inline, rename_all = "camelCase", deny_unknown_fields)]
struct SshShape {
    /// The user to log in as; other than root, it needs sudo without a password.
    #[schemars(default, schema_with = "text")]
    user: (),
    /// The SSH port.
    #[schemars(default, schema_with = "port")]
    port: (),
    /// Files with private keys.
    #[schemars(default)]
    identity_files: Vec<String>,
    /// Hosts on the way, as ssh's `ProxyJump` has it: [user@]host[:port],…, or none.
    #[schemars(default, schema_with = "text")]
    jump: (),
}

/// A variable of the environment may stand in any value.
const VARIABLE: &str = r"\$\{";

fn text(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1 })
}

fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "type": "integer", "minimum": 1, "maximum": 65535 }, { "type": "string", "pattern": VARIABLE }] })
}

fn flag(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "type": "boolean" }, { "type": "string", "pattern": VARIABLE }] })
}

fn role(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "enum": ["server", "agent"] }, { "type": "string", "pattern": VARIABLE }] })
}

fn runtime(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "enum": ["containerd", "docker"] }, { "type": "string", "pattern": VARIABLE }] })
}
