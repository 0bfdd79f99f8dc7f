//! The kernel: modules and settings that hold after a boot.

use serde::Serialize;

use crate::{RenderError, render};

/// `/etc/modules-load.d`.
#[derive(Debug, Serialize)]
pub struct Modules<'a> {
    /// Their names.
    pub modules: &'a [String],
}

impl Modules<'_> {
    /// The file.
    pub fn render(&self) -> Result<String, RenderError> {
        Ok(render("kernel/modules.conf", include_str!("../kernel/modules.conf.tera"), self)?.trim_end().to_owned() + "\n")
    }
}

/// One setting.
#[derive(Debug, Serialize)]
pub struct Setting<'a> {
    /// As in `net.ipv4.ip_forward`.
    pub key: &'a str,
    /// Its value.
    pub value: &'a str,
}

/// `/etc/sysctl.d`.
#[derive(Debug, Serialize)]
pub struct Sysctl<'a> {
    /// In their order.
    pub settings: Vec<Setting<'a>>,
}

impl Sysctl<'_> {
    /// The file.
    pub fn render(&self) -> Result<String, RenderError> {
        Ok(render("kernel/sysctl.conf", include_str!("../kernel/sysctl.conf.tera"), self)?.trim_end().to_owned() + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules() {
        insta::assert_snapshot!(Modules { modules: &["overlay".into(), "br_netfilter".into()] }.render().unwrap());
    }

    #[test]
    fn sysctl() {
        insta::assert_snapshot!(Sysctl { settings: vec![Setting { key: "net.ipv4.ip_forward", value: "1" }] }.render().unwrap());
    }
}
