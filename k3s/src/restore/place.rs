use cluster::{Role, Token};
use node::{Content, FileStep};

use crate::settings::paths;
use crate::{EnvFile, Flags};

/// A server's place in the restored cluster: it starts it, or joins it. With the token, where that is another one than before.
/// k3s refuses to restore a server that has an address to join.
pub fn place(first: bool, token: Option<Token>) -> FileStep {
    let mut step = FileStep::new(paths::env(Role::Server), "").mode(0o600).mask(EnvFile::mask);
    step.content = Content::Edited(Box::new(move |now| Ok(placed(now.unwrap_or_default(), first, token.as_ref()))));
    step
}

fn placed(now: &str, first: bool, token: Option<&Token>) -> String {
    let mut env = EnvFile::parse(now);
    if let Some(token) = token {
        env.set("K3S_TOKEN", token.expose());
    }
    if first {
        env.unset("K3S_URL");
    } else if let Some(flags) = env.get("K3S_EXTRA_FLAGS") {
        let mut flags = Flags::parse(&flags);
        flags.without(&Flags::parse("--cluster-init"));
        env.set("K3S_EXTRA_FLAGS", &flags.to_string());
    }
    env.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joiner_becomes_the_first_and_the_first_a_joiner() {
        let joiner = "K3S_TOKEN=K10x\nK3S_URL=https://10.0.0.10:9443\nK3S_EXTRA_FLAGS=\"--node-ip=10.0.0.12 --disable=traefik\"\n";
        let token = Token::parse("s3cret").unwrap();
        insta::assert_snapshot!(placed(joiner, true, Some(&token)), @r#"
        K3S_TOKEN=s3cret
        K3S_EXTRA_FLAGS="--node-ip=10.0.0.12 --disable=traefik"
        "#);
        insta::assert_snapshot!(placed("K3S_TOKEN=s3cret\nK3S_EXTRA_FLAGS=\"--cluster-init --node-ip=10.0.0.11\"\n", false, None), @r"
        K3S_TOKEN=s3cret
        K3S_EXTRA_FLAGS=--node-ip=10.0.0.11
        ");
    }
}
