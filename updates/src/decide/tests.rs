//! A fleet that lives for years: published packages, crashes, failures, joins and leaves, edits of the spec, a controller that dies
//! between any two writes. What must never happen is looked for at each step.

mod cases;
mod fleet;

use proptest::prelude::*;

use self::fleet::{Fleet, Kind};

/// Lives for a while, then is left in peace: everyone is updated in the end.
fn live(seed: u64, kind: Kind) {
    let mut fleet = Fleet::new(seed, kind);
    for _ in 0..1500 {
        fleet.disturb();
        fleet.step();
    }
    fleet.leave_in_peace();
    for _ in 0..6000 {
        fleet.step();
        if fleet.is_done() {
            return fleet.check_the_end();
        }
    }
    panic!("not done in the end: {}", fleet.shown());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn a_life_with_bans_of_whole_transactions(seed: u64) {
        live(seed, Kind { bisect: false, ..Kind::default() });
    }

    #[test]
    fn a_life_with_crashes_bisected(seed: u64) {
        live(seed, Kind { bisect: true, ..Kind::default() });
    }

    #[test]
    fn a_life_with_approvals(seed: u64) {
        live(seed, Kind { manual: true, ..Kind::default() });
    }
}

/// Two nodes tried the same suspect; a trial and a failed stage waited for each other; the same packages crashed again and again; a
/// stage failed for what could not be installed any more.
#[test]
fn lives_that_went_wrong_once() {
    for (seed, manual) in [
        (4_032_836_388_759_471_133, true),
        (11_449_645_106_103_129_404, true),
        (18_217_589_763_271_503_680, true),
        (9_729_014_653_006_279_843, false),
        (6_181_534_882_423_137_818, false),
    ] {
        live(seed, Kind { bisect: true, manual });
    }
}

/// Many more lives than a test has time for, of each kind: `LIVES=0..250 cargo test --config profile.dev.package.updates.opt-level=2 -p
/// updates --lib -- many_lives --ignored --nocapture`
#[test]
#[ignore = "takes long"]
fn many_lives() {
    let lives = std::env::var("LIVES").unwrap_or_else(|_| "0..50".into());
    let (first, end) = lives.split_once("..").expect("LIVES=0..50");
    let (first, end): (u64, u64) = (first.parse().unwrap(), end.parse().unwrap());
    let kinds = [(false, false), (false, true), (true, false), (true, true)].map(|(bisect, manual)| Kind { bisect, manual });
    let lives = (first..end).flat_map(|n| kinds.map(|kind| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15), kind)));
    let bad = lives.filter(|(seed, kind)| {
        let is_bad = std::panic::catch_unwind(|| live(*seed, *kind)).is_err();
        if is_bad {
            println!("that was {seed}, {kind:?}");
        }
        is_bad
    });
    assert_eq!(bad.count(), 0);
}

/// Five servers and a hundred others, whose updates are all due.
fn hundred() -> Fleet {
    Fleet::large(105, 3, false)
}

#[test]
fn who_starts_and_why_the_others_wait() {
    let decided = |edit: &str| {
        let mut fleet = hundred();
        fleet.edit(|spec| *spec = serde_json::from_str(edit).unwrap());
        format!("{edit}: {}", fleet.decided())
    };
    let said = [
        r"{}",
        r#"{"maxUnavailable":"3%"}"#,
        r#"{"maintenanceWindows":[{"schedule":"0 1 * * *","duration":"1h"}]}"#,
        r#"{"maintenanceWindows":[{"schedule":"0 0 * * *","duration":"30m"}],"fitWindow":true}"#,
        r#"{"maintenanceWindows":[{"schedule":"45 23 * * *","duration":"30m"}],"fitWindow":true}"#,
        r#"{"halted":true}"#,
        r#"{"suspend":true,"halted":true}"#,
        r#"{"approval":"manual"}"#,
        r#"{"stageDelays":{"fast":101,"slow":101,"stable":99}}"#,
        r#"{"bannedPackages":["package-0-1-1.noarch","package-1-1-1.noarch","package-2-1-1.noarch"]}"#,
    ]
    .map(decided);
    insta::assert_snapshot!(said.join("\n"), @r#"
    {}: a10 starts in 0, 104 WaitingForTurn
    {"maxUnavailable":"3%"}: a10 starts in 0, a100 starts in 1, a101 starts in 2, 102 WaitingForTurn
    {"maintenanceWindows":[{"schedule":"0 1 * * *","duration":"1h"}]}: 105 WindowClosed
    {"maintenanceWindows":[{"schedule":"0 0 * * *","duration":"30m"}],"fitWindow":true}: a10 starts in 0, 104 WaitingForTurn
    {"maintenanceWindows":[{"schedule":"45 23 * * *","duration":"30m"}],"fitWindow":true}: 105 DoesNotFit
    {"halted":true}: 105 Halted
    {"suspend":true,"halted":true}: 105 ClusterSuspended
    {"approval":"manual"}: 105 NotApproved
    {"stageDelays":{"fast":101,"slow":101,"stable":99}}: a10 starts in 0, 53 TooYoung, 51 WaitingForTurn
    {"bannedPackages":["package-0-1-1.noarch","package-1-1-1.noarch","package-2-1-1.noarch"]}: 105 Banned
    "#);
    let mut fleet = hundred();
    fleet.misunderstand();
    assert_eq!(fleet.decided(), "105 InvalidSpec");
}

#[test]
fn a_request_goes_first_and_waits_for_no_window() {
    let mut fleet = hundred();
    fleet.edit(|spec| spec.maintenance_windows = vec![serde_json::from_str(r#"{"schedule":"0 1 * * *","duration":"1h"}"#).unwrap()]);
    fleet.request("a50");
    assert_eq!(fleet.decided(), "a50 starts in 0, 104 WindowClosed");
    fleet.edit(|spec| spec.maintenance_windows.clear());
    assert_eq!(fleet.decided(), "a50 starts in 0, 104 WaitingForTurn");
}

#[test]
fn another_server_goes_in_the_turn_of_the_one_with_the_floating_address() {
    let mut fleet = hundred();
    fleet.request("s1");
    fleet.give_the_vip_to("s1");
    assert_eq!(fleet.decided(), "s0 starts in 0, 1 HasFloatingAddress, 103 WaitingForTurn");
}

/// Not a test of speed, which depends on the machine and on what else it does: the shortest is what a decision costs, by
/// `cargo test --release -p updates --lib -- how_long_a_decision_takes --ignored --nocapture`
#[test]
#[ignore = "prints how long a decision takes"]
fn how_long_a_decision_takes() {
    for (words, young) in [("all are due", false), ("all have 200 that are too young", true)] {
        let fleet = Fleet::large(5000, 200, young);
        let mut times: Vec<_> = (0..100).map(|_| fleet.time_of_a_decision()).collect();
        times.sort_unstable();
        println!("5000 nodes, {words}: shortest {:?}, median {:?}", times[0], times[50]);
    }
}
