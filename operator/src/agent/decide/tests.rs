use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use updates::api::{Command, RebootNeed, Reboots};

use super::*;

const PATIENCE: SignedDuration = SignedDuration::from_mins(30);

fn at(minutes: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_mins(1_000_000 + minutes)
}

/// The same by the clock that nobody sets.
fn up(minutes: i64) -> SignedDuration {
    SignedDuration::from_mins(1_000 + minutes)
}

fn boot(number: u32) -> BootId {
    format!("00000000-0000-0000-0000-{number:012}").parse().unwrap()
}

fn transaction(phase: Phase) -> Transaction {
    Transaction {
        id: "0123456789abcdef".parse().unwrap(),
        packages: vec!["bash=5".parse().unwrap(), "vim=9".parse().unwrap()],
        patches: vec!["1-2-r3".parse().unwrap()],
        reboot: Reboots::WhenNeeded,
        drain_first: false,
        started_at: Time(at(0)),
        boot_id: Some(boot(1)),
        phase,
        since: Time(at(0)),
        deadline: Some(Time(at(0) + PATIENCE)),
        trial: false,
        touched: false,
        rebooted: false,
        failure: None,
    }
}

/// How far the program is that carries out an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    None,
    Started,
    Begun,
}

/// A host with its agent, and a controller that does as docs/development/updates.md says.
#[derive(Debug)]
struct World {
    now: Timestamp,
    up: SignedDuration,
    boot: u32,
    transaction: Option<Transaction>,
    order: Option<Order>,
    journal: Option<Journal>,
    program: Program,
    /// It does nothing any more.
    stuck: bool,
    noted: bool,
    reboots: bool,
    rules: HostRules,
    said: Option<(Phase, Say)>,
    // what happened
    begun: Vec<Part>,
    begun_in: Vec<Phase>,
    ended: Vec<Part>,
    died: Option<Part>,
    seen: Vec<(Phase, Outcome)>,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The agent looks and acts.
    Agent,
    /// The agent is killed between writing an order down and starting it.
    AgentDies,
    /// The program goes on.
    Program,
    ProgramDies,
    ProgramHangs,
    PowerCut,
    Controller,
    Passes(SignedDuration),
    /// The clock is set, on or back.
    IsSet(SignedDuration),
}

impl World {
    fn new(reboots: bool) -> Self {
        Self {
            now: at(1),
            up: up(1),
            boot: 1,
            transaction: Some(transaction(Phase::Downloading)),
            order: None,
            journal: None,
            program: Program::None,
            stuck: false,
            noted: false,
            reboots,
            rules: HostRules::default(),
            said: None,
            begun: vec![],
            begun_in: vec![],
            ended: vec![],
            died: None,
            seen: vec![],
        }
    }

    fn next(&self) -> Next {
        let unit = if self.program == Program::None { Unit::Gone } else { Unit::Runs };
        let boot = boot(self.boot);
        let id = transaction(Phase::Checking).id;
        next(&Case {
            now: self.now,
            up: self.up,
            boot: &boot,
            transaction: self.transaction.as_ref(),
            rules: &self.rules,
            update: Held { order: self.order.as_ref(), journal: self.journal.as_ref(), unit, sign: None, damaged: false },
            look: Held { order: None, journal: None, unit: Unit::Gone, sign: None, damaged: false },
            noted: self.noted.then_some(&id),
            floating: Floating::None,
            away: false,
            amiss: &[],
            lags: false,
        })
    }

    fn phase(&self) -> Option<Phase> {
        self.transaction.as_ref().map(|t| t.phase)
    }

    fn agent(&mut self, dies: bool) {
        let Next { act, say } = self.next();
        match act {
            None => {}
            Some(Act::NoteServices) => self.noted = true,
            Some(Act::Stop(Seat::Update)) => {
                let silent = self.order.as_ref().is_some_and(|o| self.up - o.up > PATIENCE || matches!(o.work, Work::Download { .. }));
                assert!(silent, "what makes progress is not ended: {self:#?}");
                self.program_dies();
            }
            Some(Act::Give { seat: Seat::Update, work, patience }) => {
                assert_eq!(self.program, Program::None, "one at a time");
                if matches!(work, Work::Install { .. }) {
                    self.begun_in.extend(self.phase());
                }
                self.step(Step::Passes(SignedDuration::from_secs(1)));
                let (transaction, phase) = self.transaction.as_ref().map(|t| (t.id.clone(), t.phase)).unzip();
                self.order = Some(Order { at: self.now, boot: boot(self.boot), up: self.up, transaction, phase, patience, work });
                if !dies {
                    self.program = Program::Started;
                }
            }
            Some(other) => panic!("{other:?}"),
        }
        if let (Some(say), Some(phase), false) = (say, self.phase(), dies) {
            self.said = Some((phase, say));
        }
    }

    fn program(&mut self) {
        let Some(order) = &self.order else { return };
        let note = |end| Some(Journal { order: order.at, transaction: None, end });
        match self.program {
            Program::None => {}
            _ if self.stuck => {}
            Program::Started if self.journal.as_ref().is_some_and(|j| j.order == order.at) => self.program = Program::None,
            Program::Started => {
                self.journal = note(None);
                self.program = Program::Begun;
                if let Work::Install { items, .. } = &order.work {
                    self.begun.push(items.part());
                }
            }
            Program::Begun => {
                let found = match &order.work {
                    Work::Reboot { .. } => return self.power_cut(),
                    Work::Download { .. } => Yield::Downloaded { left_out: vec![], drain_first: false },
                    Work::Install { items, .. } => {
                        self.ended.push(items.part());
                        Yield::Installed { reboot: RebootNeed::default() }
                    }
                    _ => Yield::Nothing {},
                };
                self.journal = note(Some(End::Done(found)));
                self.program = Program::None;
            }
        }
    }

    fn program_dies(&mut self) {
        if self.program == Program::Begun
            && let Work::Install { items, .. } = &self.order.as_ref().unwrap().work
        {
            self.died = Some(items.part());
        }
        self.program = Program::None;
        self.stuck = false;
    }

    fn power_cut(&mut self) {
        self.program_dies();
        self.boot += 1;
        self.up = SignedDuration::from_secs(10);
    }

    fn controller(&mut self) {
        let (Some(transaction), Some((phase, say))) = (&mut self.transaction, &self.said) else { return };
        if *phase != transaction.phase {
            return;
        }
        self.seen.push((*phase, say.outcome));
        let to = match (phase, say.outcome) {
            (_, Outcome::Running) => return,
            (Phase::Downloading, Outcome::Done) => Phase::Installing,
            (Phase::Installing, Outcome::Done) if self.reboots => Phase::Rebooting,
            (Phase::Installing | Phase::Rebooting, _) => Phase::Verifying,
            (Phase::Downloading | Phase::Verifying, _) => Phase::Releasing,
            _ => {
                self.transaction = None;
                return;
            }
        };
        if matches!(to, Phase::Installing | Phase::Rebooting) {
            transaction.boot_id = Some(boot(self.boot));
        }
        transaction.phase = to;
        transaction.since = Time(self.now);
        transaction.deadline = Some(Time(self.now + PATIENCE));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Agent => self.agent(false),
            Step::AgentDies => self.agent(true),
            Step::Program => self.program(),
            Step::ProgramDies => self.program_dies(),
            Step::ProgramHangs => {
                let installs = matches!(&self.order, Some(Order { work: Work::Install { .. }, .. }));
                self.stuck |= self.program == Program::Begun && installs;
            }
            Step::PowerCut => self.power_cut(),
            Step::Controller => self.controller(),
            Step::Passes(time) => {
                self.now += time;
                self.up += time;
            }
            Step::IsSet(by) => self.now += by,
        }
    }

    fn saw(&self, phase: Phase, outcome: Outcome) -> bool {
        self.seen.contains(&(phase, outcome))
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => Just(Step::Agent),
        2 => Just(Step::AgentDies),
        8 => Just(Step::Program),
        1 => Just(Step::ProgramDies),
        1 => Just(Step::ProgramHangs),
        1 => Just(Step::PowerCut),
        5 => Just(Step::Controller),
        1 => (1..100_i64).prop_map(|minutes| Step::Passes(SignedDuration::from_mins(minutes))),
        1 => (-10_000_000..10_000_000_i64).prop_map(|millis| Step::IsSet(SignedDuration::from_millis(millis))),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_dies_whenever_nothing_is_installed_twice_and_no_crash_is_lost(steps in steps(), reboots: bool) {
        let mut world = World::new(reboots);
        for step in steps {
            world.step(step);
        }
        for _ in 0..40 {
            for step in [Step::Agent, Step::Program, Step::Agent, Step::Program, Step::Agent, Step::Controller, Step::Passes(SignedDuration::from_mins(11))] {
                world.step(step);
            }
        }
        for part in [Part::Patches, Part::Packages] {
            prop_assert!(world.begun.iter().filter(|p| **p == part).count() <= 1, "{world:#?}");
        }
        prop_assert!(world.begun_in.iter().all(|phase| *phase == Phase::Installing), "{world:#?}");
        prop_assert_eq!(world.died.is_some(), world.saw(Phase::Installing, Outcome::Crashed), "{:#?}", world);
        if world.saw(Phase::Installing, Outcome::Done) {
            prop_assert_eq!(&world.ended, &vec![Part::Patches, Part::Packages], "{:#?}", world);
        }
        if world.saw(Phase::Rebooting, Outcome::Done) {
            prop_assert!(world.boot > 1, "{world:#?}");
        }
        prop_assert!(world.transaction.is_none(), "{world:#?}");
    }
}

/// What is decided about one order in one phase.
struct Asked {
    transaction: Transaction,
    order: Option<Order>,
    journal: Option<Journal>,
    unit: Unit,
    sign: Option<SignedDuration>,
    damaged: bool,
    boot: u32,
    rules: HostRules,
    floating: Floating,
    away: bool,
    amiss: Vec<String>,
    lags: bool,
    gate: Option<(Order, Journal)>,
}

impl Asked {
    fn of(phase: Phase) -> Self {
        Self {
            transaction: transaction(phase),
            order: None,
            journal: None,
            unit: Unit::Gone,
            sign: None,
            damaged: false,
            boot: 1,
            rules: HostRules::default(),
            floating: Floating::None,
            away: false,
            amiss: vec![],
            lags: false,
            gate: None,
        }
    }

    fn order(mut self, work: Work) -> Self {
        let transaction = Some(self.transaction.id.clone());
        let phase = Some(self.transaction.phase);
        self.order = Some(Order { at: at(1), boot: boot(1), up: up(1), transaction, phase, patience: Some(PATIENCE), work });
        self
    }

    fn ended(mut self, end: Option<End>) -> Self {
        self.journal = Some(Journal { order: at(1), transaction: None, end });
        self
    }

    fn update(&self) -> Held<'_> {
        let (order, journal) = (self.order.as_ref(), self.journal.as_ref());
        Held { order, journal, unit: self.unit, sign: self.sign, damaged: self.damaged }
    }

    fn next(&self, minutes: i64) -> Next {
        let (boot, id) = (boot(self.boot), self.transaction.id.clone());
        let gate = self.gate.as_ref();
        next(&Case {
            now: at(minutes),
            up: up(minutes),
            boot: &boot,
            transaction: Some(&self.transaction),
            rules: &self.rules,
            update: self.update(),
            look: Held { order: gate.map(|(o, _)| o), journal: gate.map(|(_, j)| j), unit: Unit::Gone, sign: None, damaged: false },
            noted: Some(&id),
            floating: self.floating,
            away: self.away,
            amiss: &self.amiss,
            lags: self.lags,
        })
    }

    fn said(&self, minutes: i64) -> (Outcome, String) {
        let say = self.next(minutes).say.unwrap();
        (say.outcome, say.message.unwrap_or_default())
    }
}

fn install() -> Work {
    Work::Install { items: Items::Packages(transaction(Phase::Installing).packages.into_iter().collect()), rules: HostRules::default() }
}

#[test]
fn what_makes_no_progress_is_ended_and_was_a_crash() {
    let mut asked = Asked { unit: Unit::Runs, sign: Some(up(20)), ..Asked::of(Phase::Installing).order(install()).ended(None) };
    let running = asked.next(50);
    assert_eq!((running.act, running.say.as_ref().map(|s| (s.outcome, s.at))), (None, Some((Outcome::Running, at(20)))));
    assert_eq!(asked.next(51).act, Some(Act::Stop(Seat::Update)));
    // also when the controller has given up before
    asked.transaction.phase = Phase::Broken;
    assert_eq!(asked.next(51).act, Some(Act::Stop(Seat::Update)));
    asked.transaction.phase = Phase::Installing;
    asked.unit = Unit::Gone;
    assert_eq!(asked.said(52), (Outcome::Crashed, "the program that installs ended in the middle, or hung".into()));
    asked.boot = 2;
    assert_eq!(asked.said(52), (Outcome::Crashed, "the host rebooted in the middle of the installation".into()));
}

#[test]
fn what_waits_to_be_installed_has_not_begun() {
    let mut asked = Asked { unit: Unit::Runs, ..Asked::of(Phase::Installing).order(Work::Recover { interrupted: None }) };
    asked.order.as_mut().unwrap().transaction = None;
    let part = |asked: &Asked| asked.next(2).say.and_then(|say| say.part);
    assert_eq!((asked.said(2).0, part(&asked)), (Outcome::Running, None));
    asked.unit = Unit::Gone;
    assert_eq!(part(&asked), Some(Part::Patches));
    // nor has it where the API could not be asked whether it is still wanted
    let say = asked.next(2).say.unwrap();
    assert_eq!(say.clone().put_off(), Say { part: None, ..say });
}

#[test]
fn what_could_not_be_started_has_failed_and_what_failed_says_why() {
    let mut asked = Asked { unit: Unit::Failed, ..Asked::of(Phase::Installing).order(install()) };
    let failed = asked.next(2).say.unwrap();
    assert_eq!((failed.outcome, failed.part), (Outcome::Failed, None), "it has not begun");
    asked.unit = Unit::Gone;
    assert!(matches!(asked.next(2).act, Some(Act::Give { work: Work::Install { .. }, .. })), "killed before it was started");
    let asked = asked.ended(Some(End::Failed("postinst".into())));
    assert_eq!(asked.said(2), (Outcome::Failed, "postinst".into()));
}

#[test]
fn a_download_that_died_is_begun_again() {
    let download = Work::Download { packages: transaction(Phase::Downloading).packages.into_iter().collect() };
    for (boot, unit) in [(2, Unit::Gone), (1, Unit::Failed)] {
        let asked = Asked { unit, boot, ..Asked::of(Phase::Downloading).order(download.clone()).ended(None) };
        let again = Some(Act::Give { seat: Seat::Update, work: download.clone(), patience: None });
        assert_eq!((asked.next(2).act, asked.said(2).0), (again, Outcome::Running));
    }
}

#[test]
fn what_cannot_be_understood_is_not_installed_again() {
    let mut asked = Asked { damaged: true, ..Asked::of(Phase::Installing) };
    assert_eq!((asked.next(1).act, asked.said(1).0), (None, Outcome::Failed));
    (asked.unit, asked.sign) = (Unit::Runs, Some(up(1)));
    let running = asked.next(20);
    assert_eq!((running.act, running.say.map(|s| (s.outcome, s.at))), (None, Some((Outcome::Running, at(1)))));
    // nor is it in the way of the next one, once it has ended
    asked.transaction.phase = Phase::Downloading;
    assert_eq!((asked.next(20).act, asked.said(20).0), (None, Outcome::Running));
    asked.unit = Unit::Gone;
    assert!(matches!(asked.next(20).act, Some(Act::Give { work: Work::Download { .. }, .. })));
}

#[test]
fn a_host_that_cannot_be_told_anything_is_given_up_after_a_while() {
    let said = |seconds| stuck("no space left", Duration::from_secs(seconds), at(1));
    assert_eq!((said(0).outcome, said(179).outcome, said(180).outcome), (Outcome::Running, Outcome::Running, Outcome::Failed));
    assert_eq!(said(180).message.as_deref(), Some("no space left"));
}

#[test]
fn what_was_refused_changed_nothing_and_is_left_out() {
    let no = || Some(End::Refused("it would also remove bash".into()));
    let asked = Asked::of(Phase::Installing).order(install()).ended(no());
    assert_eq!(asked.said(2), (Outcome::Done, "it would also remove bash".into()));
    let held = |asked: &Asked| refused(&asked.transaction, &asked.update());
    assert_eq!(held(&asked), Some(Part::Packages));
    assert_eq!(held(&Asked::of(Phase::Installing).order(install()).ended(Some(End::Failed("no".into())))), None);
    // the packages come after the live patches all the same
    let patches =
        Work::Install { items: Items::Patches(transaction(Phase::Installing).patches.into_iter().collect()), rules: HostRules::default() };
    let asked = Asked::of(Phase::Installing).order(patches).ended(no());
    assert!(matches!(asked.next(2).act, Some(Act::Give { work: Work::Install { items: Items::Packages(_), .. }, .. })));
    assert_eq!(held(&asked), Some(Part::Patches));
    let asked = Asked { transaction: Transaction { packages: vec![], ..transaction(Phase::Installing) }, ..asked };
    assert_eq!((asked.next(2).act, asked.said(2)), (None, (Outcome::Done, "it would also remove bash".into())));
}

#[test]
fn a_host_that_does_not_reboot_is_asked_again() {
    let mut asked = Asked::of(Phase::Rebooting).order(install()).ended(Some(End::Done(Yield::Nothing {})));
    let wanted = Some(Act::Give { seat: Seat::Update, work: Work::Reboot { command: None }, patience: None });
    assert_eq!(asked.next(2).act, wanted);
    assert!(wanted.as_ref().is_some_and(Act::disturbs));
    asked = Asked::of(Phase::Rebooting).order(Work::Reboot { command: None }).ended(Some(End::Done(Yield::Nothing {})));
    assert_eq!(asked.next(2).act, None);
    assert_eq!(asked.next(4).act, wanted);
    asked.boot = 2;
    assert_eq!(asked.said(4).0, Outcome::Done);
    // one that has rebooted since, by whatever
    asked = Asked { boot: 2, ..Asked::of(Phase::Rebooting) };
    assert_eq!(asked.said(4).0, Outcome::Done);
}

#[test]
fn a_reboot_that_a_command_has_put_off_is_waited_for_and_not_put_off_again() {
    let command: Command = ["/sbin/shutdown", "-r", "+5"].map(str::to_owned).to_vec().try_into().unwrap();
    let work = || Work::Reboot { command: Some(command.clone()) };
    let mut asked = Asked::of(Phase::Rebooting).order(work()).ended(Some(End::Done(Yield::Nothing {})));
    assert_eq!((asked.next(20).act, asked.said(20).0), (None, Outcome::Running));
    for phase in [Phase::Verifying, Phase::Broken] {
        asked.transaction.phase = phase;
        assert_eq!(asked.said(60), (Outcome::Running, "a reboot was asked for, and may still come".into()));
        assert_eq!(asked.said(61).0, Outcome::Done);
    }
    asked.boot = 2;
    assert_eq!(asked.said(20), (Outcome::Done, String::new()));
    // one that fails says why, and is tried again
    let mut asked = Asked::of(Phase::Rebooting).order(work()).ended(Some(End::Failed("shutdown ended with 1: no".into())));
    assert_eq!(asked.said(2), (Outcome::Running, "asks for a reboot: shutdown ended with 1: no".into()));
    asked.rules.reboot_command = Some(command.clone());
    assert!(matches!(asked.next(4).act, Some(Act::Give { work: Work::Reboot { command: Some(_) }, .. })));
    asked.transaction.phase = Phase::Verifying;
    assert_eq!(asked.said(4), (Outcome::Done, "the host did not reboot: shutdown ended with 1: no".into()));
}

#[test]
fn a_host_of_the_same_name_installs_nothing_that_another_one_was_to() {
    let mut asked = Asked { boot: 2, ..Asked::of(Phase::Installing) };
    assert_eq!((asked.next(1).act, asked.said(1).0), (None, Outcome::Failed));
    // the same host, which was rebooted after the download
    let downloaded = || Work::Download { packages: transaction(Phase::Installing).packages.into_iter().collect() };
    asked = Asked { boot: 2, ..Asked::of(Phase::Installing).order(downloaded()) };
    assert!(matches!(asked.next(1).act, Some(Act::Give { work: Work::Install { .. }, .. })));
}

#[test]
fn a_node_is_well_when_its_services_run_and_its_gate_is_open() {
    let mut asked = Asked { amiss: vec!["ssh.service (failed)".into()], ..Asked::of(Phase::Verifying) };
    assert_eq!(asked.said(1), (Outcome::Running, "not running as before: ssh.service (failed)".into()));
    asked.amiss.clear();
    assert_eq!(asked.said(1).0, Outcome::Done);
    let command: Command = vec!["/bin/gate".to_owned()].try_into().unwrap();
    asked.rules.gate_command = Some(command.clone());
    let work = Work::Gate { command };
    assert_eq!(asked.next(1).act, Some(Act::Give { seat: Seat::Look, work: work.clone(), patience: None }));
    let (transaction, phase) = (Some(asked.transaction.id.clone()), Some(Phase::Verifying));
    let order = Order { at: at(1), boot: boot(1), up: up(1), transaction, phase, patience: None, work };
    let closed = Journal { order: at(1), transaction: None, end: Some(End::Failed("no".into())) };
    asked.gate = Some((order.clone(), closed));
    assert_eq!(asked.said(1), (Outcome::Running, "the gate command has not ended well yet: no".into()));
    assert!(asked.next(2).act.is_some(), "it is asked again");
    asked.gate = Some((order, Journal { order: at(1), transaction: None, end: Some(End::Done(Yield::Nothing {})) }));
    asked.transaction.since = Time(at(500));
    assert_eq!(asked.said(2).0, Outcome::Done, "also where the controller's clock is ahead");
    asked.transaction.phase = Phase::Broken;
    assert!(asked.next(2).act.is_some(), "what was open in another phase does not count");
    (asked.transaction.phase, asked.boot) = (Phase::Verifying, 2);
    assert!(asked.next(2).act.is_some(), "what was open before the reboot does not count");
}

#[test]
fn an_update_is_over_when_what_it_installed_is_not_listed_any_more() {
    let mut asked = Asked { lags: true, ..Asked::of(Phase::Releasing).order(install()).ended(Some(End::Done(Yield::Nothing {}))) };
    assert_eq!(asked.said(2).0, Outcome::Done, "nothing was installed");
    asked.transaction.touched = true;
    assert_eq!((asked.next(2).act, asked.said(2)), (None, (Outcome::Running, "looks for updates".into())));
    asked.lags = false;
    assert_eq!(asked.said(2).0, Outcome::Done);
}

#[test]
fn the_floating_address_is_given_away_and_taken_back() {
    let mut asked = Asked { floating: Floating::Here, ..Asked::of(Phase::HandingOver) };
    assert_eq!(asked.next(1).act, Some(Act::LetGo));
    (asked.floating, asked.away) = (Floating::Lost, true);
    assert_eq!((asked.next(1).act, asked.said(1).0), (None, Outcome::Running));
    asked.floating = Floating::Elsewhere;
    assert_eq!((asked.next(1).act, asked.said(1).0), (None, Outcome::Done));
    for phase in Phase::ALL {
        asked.transaction.phase = *phase;
        let stays = matches!(phase, Phase::HandingOver | Phase::Draining | Phase::Installing | Phase::Rebooting);
        assert_eq!(asked.next(1).act == Some(Act::TakeBack), !stays, "{phase}");
    }
}

#[test]
fn packages_that_a_crash_left_half_installed_are_mended_before_the_node_is_well() {
    let asked = Asked::of(Phase::Verifying).order(install()).ended(None);
    assert!(matches!(asked.next(2).act, Some(Act::Give { work: Work::Recover { .. }, .. })));
    let recover = || Asked::of(Phase::Broken).order(Work::Recover { interrupted: None });
    let died = recover().ended(None);
    assert_eq!((died.next(60).act, died.said(60)), (None, (Outcome::Done, "packages could not be mended".into())), "once is enough");
    let failed = recover().ended(Some(End::Failed("no space".into())));
    assert_eq!(failed.said(5), (Outcome::Done, "no space".into()));
    let mended = recover().ended(Some(End::Done(Yield::Nothing {})));
    assert_eq!(mended.said(2), (Outcome::Done, String::new()));
    // what is listed as available is from before
    assert_eq!(installed_at(&mended.update()), Some(at(1)));
    assert_eq!(installed_at(&Asked { unit: Unit::Runs, ..mended }.update()), None);
}
