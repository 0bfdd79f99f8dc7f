//! kube-apiserver, kube-controller-manager and kube-scheduler.

use crate::kubeconfig::by_reference;
use crate::layout::Layout;
use crate::process::kubernetes_component;
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// The loopback address that kube-apiserver has for itself; k3s's own listener has all others.
pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// What the three need to know.
pub struct ControlPlane<'a> {
    /// The data folder.
    pub layout: &'a Layout,
    /// Shown in the `kubernetes` endpoints.
    pub advertise: IpAddr,
    /// The API's port.
    pub port: u16,
    /// Of pods.
    pub cluster_cidr: &'a str,
    /// Of services.
    pub service_cidr: &'a str,
    /// Where etcd listens.
    pub etcd: &'a str,
}

impl ControlPlane<'_> {
    /// The API as the components on this host reach it.
    pub fn url(&self) -> String {
        format!("https://{LOOPBACK}:{}", self.port)
    }

    /// Writes `server/cred/*.kubeconfig`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn kubeconfigs(&self) -> Result<()> {
        for (file, cert) in [
            ("admin", "client-admin"),
            ("controller", "client-controller"),
            ("scheduler", "client-scheduler"),
            ("api-server", "client-kube-apiserver"),
        ] {
            by_reference(
                &self.layout.cred(&format!("{file}.kubeconfig")),
                &self.url(),
                &self.layout.tls("server-ca.crt"),
                &self.layout.tls(&format!("{cert}.crt")),
                &self.layout.tls(&format!("{cert}.key")),
            )?;
        }
        Ok(())
    }

    /// Starts kube-apiserver.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn api_server(&self, extra: &[String]) -> Result<()> {
        let tls = |f: &str| self.layout.tls(f);
        let flags = [
            ("advertise-address", self.advertise.to_string()),
            ("allow-privileged", "true".into()),
            ("anonymous-auth", "false".into()),
            ("authorization-mode", "Node,RBAC".into()),
            ("bind-address", LOOPBACK.to_string()),
            ("client-ca-file", path(&tls("client-ca.crt"))),
            ("etcd-cafile", path(&tls("etcd/server-ca.crt"))),
            ("etcd-certfile", path(&tls("etcd/client.crt"))),
            ("etcd-keyfile", path(&tls("etcd/client.key"))),
            ("etcd-servers", self.etcd.to_owned()),
            ("insecure-port", "0".into()),
            ("kubelet-certificate-authority", path(&tls("server-ca.crt"))),
            ("kubelet-client-certificate", path(&tls("client-kube-apiserver.crt"))),
            ("kubelet-client-key", path(&tls("client-kube-apiserver.key"))),
            ("kubelet-preferred-address-types", "InternalIP,ExternalIP,Hostname".into()),
            ("permit-port-sharing", "true".into()),
            ("profiling", "false".into()),
            ("proxy-client-cert-file", path(&tls("client-auth-proxy.crt"))),
            ("proxy-client-key-file", path(&tls("client-auth-proxy.key"))),
            ("requestheader-allowed-names", "system:auth-proxy".into()),
            ("requestheader-client-ca-file", path(&tls("request-header-ca.crt"))),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-".into()),
            ("requestheader-group-headers", "X-Remote-Group".into()),
            ("requestheader-username-headers", "X-Remote-User".into()),
            ("secure-port", self.port.to_string()),
            ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".into()),
            ("service-account-key-file", path(&tls("service.pub"))),
            ("service-account-signing-key-file", path(&tls("service.key"))),
            ("service-cluster-ip-range", self.service_cidr.to_owned()),
            ("storage-backend", "etcd3".into()),
            ("tls-cert-file", path(&tls("serving-kube-apiserver.crt"))),
            ("tls-private-key-file", path(&tls("serving-kube-apiserver.key"))),
        ];
        kubernetes_component("kube-apiserver", &flags, extra).await
    }

    /// Starts kube-controller-manager.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn controller_manager(&self, extra: &[String]) -> Result<()> {
        let tls = |f: &str| self.layout.tls(f);
        let kubeconfig = path(&self.layout.cred("controller.kubeconfig"));
        let flags = [
            ("allocate-node-cidrs", "true".into()),
            ("authentication-kubeconfig", kubeconfig.clone()),
            ("authorization-kubeconfig", kubeconfig.clone()),
            ("bind-address", "127.0.0.1".into()),
            ("cluster-cidr", self.cluster_cidr.to_owned()),
            ("cluster-signing-cert-file", path(&tls("client-ca.crt"))),
            ("cluster-signing-key-file", path(&tls("client-ca.key"))),
            ("configure-cloud-routes", "false".into()),
            // It starts its controllers one by one, and a node waits for the one with the addresses.
            ("kube-api-burst", "200".into()),
            ("kube-api-qps", "100".into()),
            ("kubeconfig", kubeconfig),
            ("port", "0".into()),
            ("profiling", "false".into()),
            ("root-ca-file", path(&tls("server-ca.crt"))),
            ("service-account-private-key-file", path(&tls("service.key"))),
            ("service-cluster-ip-range", self.service_cidr.to_owned()),
            ("use-service-account-credentials", "true".into()),
        ];
        kubernetes_component("kube-controller-manager", &flags, extra).await
    }

    /// Starts kube-scheduler.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn scheduler(&self, extra: &[String]) -> Result<()> {
        let kubeconfig = path(&self.layout.cred("scheduler.kubeconfig"));
        let flags = [
            ("authentication-kubeconfig", kubeconfig.clone()),
            ("authorization-kubeconfig", kubeconfig.clone()),
            ("bind-address", "127.0.0.1".into()),
            ("kubeconfig", kubeconfig),
            ("port", "0".into()),
            ("profiling", "false".into()),
        ];
        kubernetes_component("kube-scheduler", &flags, extra).await
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
