//! SSH against a real sshd.

mod sshd;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fleet::ssh::{Exit, Options, Passphrases, Target, connect};
use futures::future::join_all;
use node::{Error, Kind};
use sshd::{Agent, Sshd, certify, keygen, output, run};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};

/// What the user reads.
fn told(e: &Error) -> String {
    format!("{}\nhint: {}", e.chain(), e.hint.as_deref().unwrap_or("none"))
}

#[track_caller]
fn assert_says(e: &Error, parts: &[&str]) {
    let told = told(e);
    for part in parts {
        assert!(told.contains(part), "{part:?} is not in: {told}");
    }
}

#[tokio::test]
async fn a_command_ends_with_its_code_or_by_a_signal() {
    let sshd = Sshd::start(&["ed25519"], "");
    sshd.know("ed25519");
    let connection = sshd.connect().await.unwrap();
    assert_eq!(connection.user(), "root");
    assert_eq!(output(&connection, "echo hello; exit 7").await, ("hello\n".into(), Exit::Code(7)));
    assert_eq!(output(&connection, "true").await, (String::new(), Exit::Code(0)));
    assert_eq!(output(&connection, "kill -KILL $$").await, (String::new(), Exit::Signal("KILL".into())));
    connection.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_and_output_flow_at_once_and_the_end_of_standard_error_is_kept() {
    // Keys are exchanged anew all the time, and once through a jump host that does so too.
    let sshd = Sshd::start(&["ed25519"], "RekeyLimit 1M");
    sshd.know("ed25519");
    let way = vec![format!("root@127.0.0.1:{}", sshd.port)];
    for jump in [vec![], way] {
        let connection = connect(&Target { jump, ..sshd.target() }, &sshd.options()).await.unwrap();
        let sent: Vec<u8> = (0..8 * 1024 * 1024_u32).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();

        let mut process = connection.exec("tee /dev/null; seq 5000 >&2; echo the end >&2").await.unwrap();
        let (mut stdin, mut stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let write = async {
            stdin.write_all(&sent).await.unwrap();
            stdin.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (read, ()) = tokio::join!(stdout.read_to_end(&mut received), write);
        read.unwrap();
        assert!(received == sent, "{} bytes came back", received.len());
        assert_eq!(process.wait().await, Exit::Code(0));
        let stderr = process.stderr();
        assert!(stderr.len() <= 8 * 1024 && stderr.ends_with("4999\n5000\nthe end\n"), "{stderr}");
    }
}

#[tokio::test]
async fn the_input_of_a_command_that_is_left_alone_ends() {
    let sshd = Sshd::start(&["ed25519"], "");
    sshd.know("ed25519");
    let connection = sshd.connect().await.unwrap();
    // Nobody reads this output, nor writes the input.
    assert_eq!(connection.exec("cat; head -c 10000000 /dev/zero; exit 3").await.unwrap().wait().await, Exit::Code(3));
}

#[tokio::test]
async fn a_connection_that_is_lost_leaves_the_outcome_unknown() {
    let sshd = Sshd::start(&["ed25519"], "");
    sshd.know("ed25519");
    let connection = sshd.connect().await.unwrap();
    // The shell's parent is the sshd of this connection.
    let mut process = connection.exec("echo $PPID; exec sleep 1000").await.unwrap();
    let mut stdout = process.stdout.take().unwrap();
    let mut pid = String::new();
    stdout.read_line(&mut pid).await.unwrap();
    // More than there is room for: this waits until the connection ends, and must not wait longer.
    let mut stdin = process.stdin.take().unwrap();
    let writing = tokio::spawn(async move {
        loop {
            if let Err(e) = stdin.write_all(&[0; 8 * 1024]).await {
                return e.kind();
            }
        }
    });
    run(Command::new("kill").args(["-KILL", pid.trim()]));
    assert_eq!(process.wait().await, Exit::Lost);
    assert_eq!(writing.await.unwrap(), std::io::ErrorKind::BrokenPipe);
    assert_eq!(stdout.read_line(&mut pid).await.unwrap(), 0);
    assert_says(&connection.exec("true").await.err().unwrap(), &["127.0.0.1 does not start a command"]);
}

#[tokio::test]
async fn an_unknown_key_is_refused_and_the_line_to_add_is_right() {
    let sshd = Sshd::start(&["ed25519"], "");
    let e = sshd.connect().await.unwrap_err();
    assert_eq!(e.kind, Kind::Refused);
    let fingerprint = run(Command::new("ssh-keygen").arg("-lf").arg(sshd.path("host_ed25519.pub")));
    let fingerprint = fingerprint.split_whitespace().nth(1).unwrap();
    let line = format!("{} {}", sshd.name(), sshd.public("host_ed25519"));
    let file = sshd.path("known_hosts").display().to_string();
    assert_says(&e, &["127.0.0.1", fingerprint, &line, &file, "--accept-new-host-keys", "ssh_host_ed25519_key.pub"]);
    assert!(!sshd.path("known_hosts").exists());

    // As a user does who follows the hint.
    let line = e.hint.unwrap().lines().last().unwrap().to_owned();
    sshd.write("known_hosts", &line);
    sshd.connect().await.unwrap();
}

#[tokio::test]
async fn a_first_use_is_accepted_when_the_user_says_so() {
    let sshd = Sshd::start(&["ed25519"], "");
    let folder = sshd.path("home/.ssh");
    let options = Options { accept_new: true, known_hosts: vec![folder.join("known_hosts"), sshd.path("known_hosts")], ..sshd.options() };
    connect(&sshd.target(), &options).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&options.known_hosts[0])), (0o700, 0o600));
    let line = format!("{} {}\n", sshd.name(), sshd.public("host_ed25519"));
    assert_eq!(fs::read_to_string(&options.known_hosts[0]).unwrap(), line);
    assert!(!sshd.path("known_hosts").exists());

    connect(&sshd.target(), &options).await.unwrap();
    assert_eq!(fs::read_to_string(&options.known_hosts[0]).unwrap(), line);
    connect(&sshd.target(), &Options { accept_new: false, ..options }).await.unwrap();
}

#[tokio::test]
async fn a_new_name_is_hashed_when_the_configuration_says_so() {
    let sshd = Sshd::start(&["ed25519"], "");
    sshd.write("config", "IdentityAgent none\nHashKnownHosts yes\n");
    sshd.write("known_hosts", "# a last line without an end");
    connect(&sshd.target(), &Options { accept_new: true, ..sshd.options() }).await.unwrap();
    let text = sshd.read("known_hosts");
    assert!(text.starts_with("# a last line without an end\n|1|") && !text.contains("127"), "{text}");
    let found = run(Command::new("ssh-keygen").args(["-F", &sshd.name(), "-f"]).arg(sshd.path("known_hosts")));
    assert!(found.contains(&sshd.public("host_ed25519")), "{found}");
    sshd.connect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_first_uses_at_once_leave_one_line() {
    let sshd = Sshd::start(&["ed25519"], "");
    let options = Options { accept_new: true, ..sshd.options() };
    let target = sshd.target();
    for connection in join_all((0..10).map(|_| connect(&target, &options))).await {
        connection.unwrap();
    }
    assert_eq!(sshd.read("known_hosts").lines().count(), 1);
}

#[tokio::test]
async fn a_changed_key_is_refused_whatever_the_user_says() {
    let sshd = Sshd::start(&["ed25519"], "");
    keygen(&sshd.path("other"), "ed25519", "");
    let text = format!("# the old one\n{} {}\n", sshd.name(), sshd.public("other"));
    sshd.write("known_hosts", &text);
    let e = connect(&sshd.target(), &Options { accept_new: true, ..sshd.options() }).await.unwrap_err();
    assert_eq!(e.kind, Kind::Refused);
    let place = format!("{}:2", sshd.path("known_hosts").display());
    assert_says(&e, &["127.0.0.1", &place, &format!("ssh-keygen -R '{}'", sshd.name())]);
    assert_eq!(sshd.read("known_hosts"), text);
}

#[tokio::test]
async fn a_revoked_key_is_refused_beside_a_good_line_and_when_it_is_pinned() {
    let sshd = Sshd::start(&["ed25519"], "");
    let (name, key) = (sshd.name(), sshd.public("host_ed25519"));
    sshd.write("known_hosts", &format!("{name} {key}\n@revoked * {key}\n"));
    let pinned = Target { host_key: Some(key.parse().unwrap()), ..sshd.target() };
    for target in [sshd.target(), pinned] {
        let e = connect(&target, &Options { accept_new: true, ..sshd.options() }).await.unwrap_err();
        assert_eq!(e.kind, Kind::Refused);
        assert_says(&e, &["127.0.0.1", "revoked", &format!("{}:2", sshd.path("known_hosts").display())]);
    }
}

#[tokio::test]
async fn the_known_one_of_several_keys_is_asked_for() {
    let sshd = Sshd::start(&["ed25519", "ecdsa", "rsa"], "");
    for kind in ["ed25519", "ecdsa", "rsa"] {
        sshd.know(kind);
        sshd.connect().await.unwrap();
    }
}

#[tokio::test]
async fn a_pinned_key_counts_and_nothing_else() {
    let sshd = Sshd::start(&["ed25519", "rsa"], "");
    let pinned = |key: &str| Target { host_key: Some(key.parse().unwrap()), ..sshd.target() };
    let fingerprint = run(Command::new("ssh-keygen").arg("-lf").arg(sshd.path("host_ed25519.pub")));
    let fingerprint = fingerprint.split_whitespace().nth(1).unwrap();
    for key in [&sshd.public("host_ed25519"), &sshd.public("host_rsa"), &format!("{} a comment", sshd.public("host_rsa")), fingerprint] {
        connect(&pinned(key), &sshd.options()).await.unwrap();
    }
    sshd.know("ed25519");
    keygen(&sshd.path("other"), "ed25519", "");
    let e = connect(&pinned(&sshd.public("other")), &Options { accept_new: true, ..sshd.options() }).await.unwrap_err();
    assert_eq!(e.kind, Kind::Refused);
    assert_says(&e, &["127.0.0.1 shows the ssh-ed25519 key SHA256:", "is pinned"]);
}

#[tokio::test]
async fn a_host_certificate_is_as_good_as_its_authority() {
    let mut sshd = Sshd::start(&["ed25519"], "");
    for authority in ["ca", "other_ca"] {
        keygen(&sshd.path(authority), "ed25519", "");
    }
    let (ca, other, key) = (sshd.public("ca"), sshd.public("other_ca"), sshd.public("host_ed25519"));
    let known = format!("@cert-authority [127.0.0.*]:* {ca}\n");
    // How the key is signed, what is known beside the authority, and what is said; nothing = trusted.
    let cases: &[(&str, &[&str], String, &[&str])] = &[
        ("ca", &["-n", "127.0.0.1"], String::new(), &[]),
        ("ca", &[], String::new(), &[]),
        ("ca", &["-n", "h1,h2"], String::new(), &["not known", "it is for h1, h2, not for 127.0.0.1"]),
        ("ca", &["-V", "20200101:20200102"], String::new(), &["not known", "expired"]),
        ("ca", &["-V", "20990101:20990102"], String::new(), &["not known", "not valid yet"]),
        ("ca", &["-O", "critical:force-command=x"], String::new(), &["not known", "critical option", "force-command"]),
        ("other_ca", &["-n", "127.0.0.1"], String::new(), &["not known", "not a known authority"]),
        ("ca", &["-n", "127.0.0.1"], format!("@revoked * {ca}\n"), &["revoked"]),
        ("ca", &["-n", "127.0.0.1"], format!("@revoked * {key}\n"), &["revoked"]),
        ("ca", &["-n", "h1"], format!("NAME {key}\n"), &[]),
        ("ca", &["-n", "h1"], format!("NAME {other}\n"), &["another key"]),
    ];
    for (authority, options, beside, said) in cases {
        certify(&sshd.path(authority), &sshd.path("host_ed25519"), options);
        let certificate = sshd.path("host_ed25519-cert.pub");
        sshd.restart(&format!("HostCertificate {}", certificate.display()));
        let text = format!("{known}{}", beside.replace("NAME", &sshd.name()));
        sshd.write("known_hosts", &text);
        match connect(&sshd.target(), &Options { accept_new: true, ..sshd.options() }).await {
            Ok(_) => assert!(said.is_empty(), "{authority} {options:?}: trusted, not {said:?}"),
            Err(e) => {
                assert!(!said.is_empty() && e.kind == Kind::Refused, "{authority} {options:?}: {}", told(&e));
                assert_says(&e, said);
            }
        }
        assert_eq!(sshd.read("known_hosts"), text, "nothing is accepted in place of a certificate that is not good");
        assert_eq!(sshd.ssh(), said.is_empty(), "{authority} {options:?}: OpenSSH says otherwise");
    }
    sshd.restart("");
    // A bare key is never trusted because of an authority.
    sshd.write("known_hosts", &known);
    let e = sshd.connect().await.unwrap_err();
    assert_says(&e, &["not known", "shows a bare key", &format!("{}:1", sshd.path("known_hosts").display())]);
}

/// What OpenSSH's own client trusts, we trust, and nothing else.
#[tokio::test]
async fn known_hosts_mean_what_they_mean_to_openssh() {
    let sshd = Sshd::start(&["ed25519", "ecdsa"], "");
    keygen(&sshd.path("other"), "ed25519", "");
    keygen(&sshd.path("other_rsa"), "rsa", "");
    let (name, port) = (sshd.name(), sshd.port);
    let (key, second) = (sshd.public("host_ed25519"), sshd.public("host_ecdsa"));
    let (other, other_rsa) = (sshd.public("other"), sshd.public("other_rsa"));
    let hashed = |name: &str, key: &str| {
        let file = sshd.write("hashed", &format!("{name} {key}\n"));
        run(Command::new("ssh-keygen").args(["-q", "-H", "-f"]).arg(&file));
        fs::read_to_string(file).unwrap()
    };
    let cases = [
        String::new(),
        format!("{name} {key}"),
        format!("{name} {second}"),
        format!("{name} {other}"),
        format!("{name} {other_rsa}"),
        format!("{name} {other}\n{name} {key}"),
        format!("{name} {key}\n{name} {other}"),
        format!("{name} {other_rsa}\n{name} {second}"),
        format!("  {name}\t{key} a comment # and more"),
        format!("# {name} {key}"),
        format!("127.0.0.1 {key}"),
        format!("127.0.0.1 {other}"),
        format!("{name} {other}\n127.0.0.1 {key}"),
        format!("127.0.0.1 {other}\n{name} {key}"),
        format!("127.0.0.1:{port} {key}"),
        format!("[127.0.0.1]:22 {key}"),
        format!("[127.0.0.*]:{port} {key}"),
        format!("[127.0.0.?]:* {key}"),
        format!("* {key}"),
        format!("*,!{name} {key}"),
        format!("!{name},* {key}"),
        format!("!{name} {key}"),
        format!("*,!127.0.0.1 {key}"),
        format!("other,{name} {key}"),
        format!("other, {name} {key}"),
        format!("h1 {key}"),
        hashed(&name, &key),
        hashed(&name, &other),
        hashed("127.0.0.1", &key),
        format!("{}{}", hashed("h1", &other), hashed(&name, &key)),
        format!("|1|notbase64|notbase64 {key}\n{name} {key}"),
        format!("{name} not-a-key AAAA\n{name} {key}"),
        format!("{name} ssh-rsa {}\n{name} {key}", key.split(' ').nth(1).unwrap()),
        format!("@revoked {name} {key}"),
        format!("{name} {key}\n@revoked {name} {key}"),
        format!("@revoked * {key}\n{name} {key}"),
        format!("@revoked h1 {key}\n{name} {key}"),
        format!("@revoked {name} {other}\n{name} {key}"),
        format!("{name} {key}\n@revoked {}", hashed(&name, &key)),
        format!("@cert-authority {name} {key}"),
        format!("@cert-authority {name} {other}\n{name} {key}"),
        format!("@cert-authority * {other}\n{name} {other}"),
        format!("@unknown {name} {key}"),
        format!("@unknown {name} {other}\n{name} {key}"),
    ];
    for known in cases {
        sshd.write("known_hosts", &format!("{}\n", known.trim_end()));
        let result = sshd.connect().await;
        assert_eq!(result.is_ok(), sshd.ssh(), "{known}\n{:?}", result.err());
    }
}

#[tokio::test]
async fn a_name_is_looked_up_in_lower_case_and_under_its_alias() {
    let sshd = Sshd::start(&["ed25519"], "");
    let options = sshd.options();
    let key = sshd.public("host_ed25519");
    let named = |name: &str| Target { name: name.into(), ..sshd.target() };
    // `localhost` needs no DNS.
    sshd.write("known_hosts", &format!("[LocalHost]:{} {key}\n", sshd.port));
    connect(&named("LOCALHOST"), &options).await.unwrap();

    sshd.write("config", "IdentityAgent none\nHost h1\n HostName 127.0.0.1\n HostKeyAlias the-host\n");
    sshd.write("known_hosts", &format!("the-host {key}\n"));
    connect(&named("h1"), &options).await.unwrap();
    let e = connect(&named("localhost"), &options).await.unwrap_err();
    assert_says(&e, &["localhost is not known"]);
}

#[tokio::test]
async fn the_configuration_says_who_where_and_with_which_key() {
    let sshd = Sshd::start(&["ed25519"], "");
    fs::create_dir(sshd.path("more")).unwrap();
    let d = sshd.dir.path().display();
    sshd.write("more/10-hosts.conf", &format!("Host h?\n HostName 127.0.0.1\n Port {}\n", sshd.port));
    let config = format!(
        "Include {d}/more/*.conf\nMatch exec \"false\"\n User nobody\nHost h* !h9\n IdentityFile {d}/i%%\n IdentityFile {d}/id\n User root\n\
         UserKnownHostsFile {d}/known_hosts\nGlobalKnownHostsFile none\nHost *\n IdentityAgent none\n User nobody\n"
    );
    let options = Options { config: Some(sshd.write("config", &config)), ..Options::default() };
    sshd.know("ed25519");
    let target = Target { name: "h1".into(), ..Target::default() };
    let connection = connect(&target, &options).await.unwrap();
    assert_eq!(connection.user(), "root");
    sshd.write("known_hosts", "");
    assert_says(&connect(&target, &options).await.unwrap_err(), &["h1 is not known", &format!("{d}/known_hosts")]);
}

#[tokio::test]
async fn every_kind_of_key_logs_in() {
    let sshd = Sshd::start(&["ed25519"], "");
    sshd.know("ed25519");
    let keys: &[(&str, &[&str])] = &[
        ("ed25519", &[]),
        ("ecdsa", &["-b", "256"]),
        ("ecdsa", &["-b", "384"]),
        ("ecdsa", &["-b", "521"]),
        ("rsa", &["-b", "2048"]),
        ("rsa", &["-b", "2048", "-m", "PEM"]),
        ("rsa", &["-b", "2048", "-m", "PKCS8"]),
    ];
    for (kind, options) in keys {
        for passphrase in ["", "secret words"] {
            let path = sshd.path("key");
            let _ = fs::remove_file(&path);
            run(Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", passphrase, "-f"]).arg(&path).args(*options));
            sshd.write("authorized_keys", &sshd.read("key.pub"));
            let passphrases = Passphrases::from(|_| Ok("secret words".to_owned().into()));
            let target = Target { identity_files: vec![path], ..sshd.target() };
            let result = connect(&target, &Options { passphrases, ..sshd.options() }).await;
            assert!(result.is_ok(), "{kind} {options:?} {passphrase:?}: {}", told(&result.unwrap_err()));
        }
    }
}

#[tokio::test]
async fn rsa_keys_sign_with_sha_2() {
    let sshd = Sshd::start(&["ed25519"], "PubkeyAcceptedAlgorithms rsa-sha2-512");
    sshd.know("ed25519");
    keygen(&sshd.path("rsa"), "rsa", "");
    sshd.write("authorized_keys", &sshd.read("rsa.pub"));
    let target = Target { identity_files: vec![sshd.path("rsa")], ..sshd.target() };
    connect(&target, &sshd.options()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passphrase_is_asked_for_once_and_only_when_the_host_wants_the_key() {
    let sshd = Sshd::start(&["ed25519"], "");
    sshd.know("ed25519");
    keygen(&sshd.path("locked"), "ed25519", "secret words");
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let passphrases = Passphrases::from(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok("secret words".to_owned().into())
    });
    let options = Options { passphrases, ..sshd.options() };
    let target = Target { identity_files: vec![sshd.path("locked"), sshd.path("id")], ..sshd.target() };

    connect(&target, &options).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 0, "the host does not want this key");

    sshd.write("authorized_keys", &sshd.read("locked.pub"));
    for connection in join_all((0..5).map(|_| connect(&target, &options))).await {
        connection.unwrap();
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_passphrase_that_cannot_be_had_is_said_and_not_shown() {
    let sshd = Sshd::start(&["ed25519"], "");
    sshd.know("ed25519");
    keygen(&sshd.path("locked"), "ed25519", "secret words");
    sshd.write("authorized_keys", &sshd.read("locked.pub"));
    let target = Target { identity_files: vec![sshd.path("locked")], ..sshd.target() };
    let wrong = Options { passphrases: Passphrases::from(|_| Ok("other words".to_owned().into())), ..sshd.options() };
    for _ in 0..2 {
        let e = connect(&target, &wrong).await.unwrap_err();
        assert_says(&e, &["127.0.0.1 does not let root in", "locked: ", "passphrase"]);
        assert!(!told(&e).contains("other words"));
    }
    let nobody = Options { passphrases: Passphrases::from(|_| Err(std::io::Error::other("no terminal"))), ..sshd.options() };
    let add = format!("ssh-add {}", sshd.path("locked").display());
    assert_says(&connect(&target, &nobody).await.unwrap_err(), &["it is encrypted", "no terminal", &add]);
}

#[tokio::test]
async fn the_agent_signs() {
    let sshd = Sshd::start(&["ed25519"], "");
    sshd.know("ed25519");
    keygen(&sshd.path("rsa"), "rsa", "");
    let _agent = Agent::start(&sshd, &["id", "rsa"]);
    sshd.write("config", &format!("IdentityAgent {}\n", sshd.path("agent").display()));
    let target = Target { identity_files: vec![sshd.path("none")], ..sshd.target() };
    for key in ["id", "rsa"] {
        sshd.write("authorized_keys", &sshd.read(&format!("{key}.pub")));
        connect(&target, &sshd.options()).await.unwrap();
    }

    // Only what is named, and a public half is enough for that.
    sshd.write("config", &format!("IdentityAgent {}\nIdentitiesOnly yes\n", sshd.path("agent").display()));
    assert_says(&connect(&target, &sshd.options()).await.unwrap_err(), &["does not let root in", "none: No such file"]);
    let named = Target { identity_files: vec![sshd.path("rsa.pub")], ..sshd.target() };
    connect(&named, &sshd.options()).await.unwrap();
}

#[tokio::test]
async fn a_user_certificate_logs_in_from_the_agent_and_from_a_file() {
    let sshd = Sshd::start(&["ed25519"], "");
    sshd.know("ed25519");
    keygen(&sshd.path("ca"), "ed25519", "");
    sshd.write("authorized_keys", &format!("cert-authority {}\n", sshd.read("ca.pub")));
    for kind in ["ed25519", "rsa"] {
        let path = sshd.path(&format!("key_{kind}"));
        keygen(&path, kind, "");
        let target = Target { identity_files: vec![path.clone()], ..sshd.target() };
        assert!(connect(&target, &sshd.options()).await.is_err());
        run(Command::new("ssh-keygen")
            .args(["-q", "-I", "a user", "-n", "root", "-s"])
            .arg(sshd.path("ca"))
            .arg(path.with_extension("pub")));
        connect(&target, &sshd.options()).await.unwrap();

        let agent = Agent::start(&sshd, &[path.file_name().unwrap().to_str().unwrap()]);
        let config = sshd.write("with_agent", &format!("IdentityAgent {}\n", sshd.path("agent").display()));
        let bare = Target { identity_files: vec![sshd.path("none")], ..target };
        connect(&bare, &Options { config: Some(config), ..sshd.options() }).await.unwrap();
        drop(agent);
        fs::remove_file(sshd.path("agent")).unwrap();
    }
}

#[tokio::test]
async fn an_agent_that_is_gone_is_said_and_does_no_harm() {
    let sshd = Sshd::start(&["ed25519"], "");
    sshd.know("ed25519");
    sshd.write("config", &format!("IdentityAgent {}\n", sshd.path("gone").display()));
    sshd.connect().await.unwrap();
    let public = Target { identity_files: vec![sshd.path("id.pub")], ..sshd.target() };
    assert_says(&connect(&public, &sshd.options()).await.unwrap_err(), &["the ssh-agent at ", "gone: No such file"]);
}

#[tokio::test]
async fn a_refused_login_says_what_was_tried() {
    let sshd = Sshd::start(&["ed25519"], "");
    sshd.know("ed25519");
    keygen(&sshd.path("wrong"), "ed25519", "");
    keygen(&sshd.path("other"), "ed25519", "");
    let _agent = Agent::start(&sshd, &["other"]);
    sshd.write("config", &format!("IdentityAgent {}\n", sshd.path("agent").display()));
    sshd.write("garbage", "not a key");
    let files = ["wrong", "missing", "garbage"].map(|f| sshd.path(f)).to_vec();
    let e = connect(&Target { identity_files: files, ..sshd.target() }, &sshd.options()).await.unwrap_err();
    assert_eq!(e.kind, Kind::Failed);
    let wrong = format!("the key {}", sshd.path("wrong").display());
    assert_says(
        &e,
        &["127.0.0.1 does not let root in", &wrong, "the agent's key", "missing: No such file", "garbage: it is not a private key"],
    );
    assert_says(&e, &["ssh root@127.0.0.1", "authorized_keys"]);
}

#[tokio::test]
async fn a_host_that_hangs_up_after_wrong_keys_is_understood() {
    let sshd = Sshd::start(&["ed25519"], "MaxAuthTries 2");
    sshd.know("ed25519");
    let files: Vec<_> = (0..4).map(|n| sshd.path(&format!("wrong{n}"))).collect();
    for file in &files {
        keygen(file, "ed25519", "");
    }
    let e = connect(&Target { identity_files: files, ..sshd.target() }, &sshd.options()).await.unwrap_err();
    assert_says(&e, &["127.0.0.1", "hung up", "IdentitiesOnly"]);
}

#[tokio::test]
async fn the_way_leads_over_jump_hosts_each_of_them_verified() {
    let (first, second, last) = (Sshd::start(&["ed25519"], ""), Sshd::start(&["ed25519"], ""), Sshd::start(&["ed25519"], ""));
    for host in [&second, &last] {
        host.write("authorized_keys", &first.read("id.pub"));
    }
    let line = |host: &Sshd| format!("{} {}\n", host.name(), host.public("host_ed25519"));
    let (a, b, c) = (line(&first), line(&second), line(&last));
    let jumps = vec![format!("root@127.0.0.1:{}", first.port), format!("root@127.0.0.1:{}", second.port)];
    let target = Target { identity_files: vec![first.path("id")], jump: jumps.clone(), ..last.target() };

    first.write("known_hosts", &format!("{a}{b}{c}"));
    let connection = connect(&target, &first.options()).await.unwrap();
    let (said, _) = output(&connection, "echo $SSH_CONNECTION").await;
    assert!(said.trim().ends_with(&last.port.to_string()), "{said}");
    assert!(first.read("sshd.log").contains("Accepted") && second.read("sshd.log").contains("Accepted"));
    connection.close().await;

    for (known, host) in [(format!("{b}{c}"), &first), (format!("{a}{c}"), &second), (format!("{a}{b}"), &last)] {
        first.write("known_hosts", &known);
        let e = connect(&target, &first.options()).await.unwrap_err();
        assert_says(&e, &["not known", &host.public("host_ed25519")]);
    }

    // The same from the configuration; `none` on the command line switches it off.
    first.write("known_hosts", &format!("{a}{b}"));
    let config = format!(
        "Host way\n HostName 127.0.0.1\n Port {}\n User root\nHost last\n HostName 127.0.0.1\n Port {}\n User root\n ProxyJump way\n\
         Host *\n IdentityAgent none\n",
        first.port, second.port
    );
    first.write("config", &config);
    let target = Target { name: "last".into(), identity_files: vec![first.path("id")], ..Target::default() };
    let seen = |host: &Sshd| host.read("sshd.log").matches("Accepted publickey").count();
    let before = seen(&first);
    connect(&target, &first.options()).await.unwrap();
    assert_eq!(seen(&first), before + 1);
    connect(&Target { jump: vec!["none".into()], ..target }, &first.options()).await.unwrap();
    assert_eq!(seen(&first), before + 1);
}

#[tokio::test]
async fn a_jump_host_is_logged_in_to_once_and_again_when_it_was_lost() {
    // More than one login at a time, and this jump host would hang up.
    let (jump, last) = (Sshd::start(&["ed25519"], "MaxStartups 1"), Sshd::start(&["ed25519"], ""));
    last.write("authorized_keys", &jump.read("id.pub"));
    let line = |host: &Sshd| format!("{} {}\n", host.name(), host.public("host_ed25519"));
    jump.write("known_hosts", &format!("{}{}", line(&jump), line(&last)));
    let options = jump.options();
    let way = vec![format!("root@127.0.0.1:{}", jump.port)];
    let target = Target { identity_files: vec![jump.path("id")], jump: way, ..last.target() };
    let logins = || jump.read("sshd.log").matches("Accepted publickey").count();

    let connections = join_all((0..8).map(|_| connect(&target, &options))).await;
    assert_eq!(logins(), 1);
    for connection in &connections {
        assert_eq!(output(connection.as_ref().unwrap(), "echo hello").await.0, "hello\n");
    }
    run(Command::new("kill").args(["-KILL", &jump.child()]));
    assert_eq!(connections[0].as_ref().unwrap().exec("true").await.err().map(|e| e.kind), Some(Kind::Failed));
    connect(&target, &options).await.unwrap();
    assert_eq!(logins(), 2);

    jump.write("known_hosts", &line(&last));
    let fresh = jump.options();
    for result in join_all((0..3).map(|_| connect(&target, &fresh))).await {
        let e = result.unwrap_err();
        assert_eq!(e.kind, Kind::Refused);
        assert_says(&e, &["not known", &jump.public("host_ed25519")]);
    }
}

#[tokio::test]
async fn a_jump_host_that_is_lost_leaves_nobody_waiting() {
    let (jump, last) = (Sshd::start(&["ed25519"], ""), Sshd::start(&["ed25519"], ""));
    last.write("authorized_keys", &jump.read("id.pub"));
    let line = |host: &Sshd| format!("{} {}\n", host.name(), host.public("host_ed25519"));
    jump.write("known_hosts", &format!("{}{}", line(&jump), line(&last)));
    let target = Target { identity_files: vec![jump.path("id")], jump: vec![format!("root@127.0.0.1:{}", jump.port)], ..last.target() };
    let connection = connect(&target, &jump.options()).await.unwrap();
    let mut process = connection.exec("cat > /dev/null").await.unwrap();
    let mut stdin = process.stdin.take().unwrap();

    // The last host stands still: what is sent piles up on the way, until nothing moves any more.
    let _stopped = last.stop_child();
    while tokio::time::timeout(Duration::from_millis(500), stdin.write_all(&[0; 8 * 1024])).await.is_ok() {}
    run(Command::new("kill").args(["-KILL", &jump.child()]));
    assert_eq!(process.wait().await, Exit::Lost);
    assert_eq!(stdin.write_all(&[0]).await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_jump_host_that_cannot_reach_or_forbids_is_told_apart() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (config, said) in [("", "the jump host cannot reach it"), ("AllowTcpForwarding no", "the jump host forbids it")] {
        let sshd = Sshd::start(&["ed25519"], config);
        sshd.know("ed25519");
        let target = Target { port: Some(closed), jump: vec![format!("root@127.0.0.1:{}", sshd.port)], ..sshd.target() };
        assert_says(&connect(&target, &sshd.options()).await.unwrap_err(), &[&format!("127.0.0.1:{closed}"), said]);
    }
}

#[tokio::test]
async fn whoever_does_not_speak_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let options = Options { config: Some(dir.path().join("none")), connect_timeout: Duration::from_millis(300), ..Options::default() };
    let target = Target { name: "127.0.0.1".into(), port: Some(port), ..Target::default() };
    let e = connect(&target, &options).await.unwrap_err();
    assert_says(&e, &[&format!("127.0.0.1:{port}"), "does not answer within 0.3 s"]);

    drop(listener);
    let e = connect(&target, &options).await.unwrap_err();
    assert_says(&e, &["cannot connect to 127.0.0.1", "refused", &format!("does sshd run there, and on port {port}?")]);
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { config: Some(dir.path().join("none")), connect_timeout: Duration::from_secs(60), ..Options::default() };
    let e = connect(&Target { name: "h1.invalid".into(), ..Target::default() }, &options).await.unwrap_err();
    assert_says(&e, &["cannot connect to h1.invalid", "has no address", "HostName"]);
}
