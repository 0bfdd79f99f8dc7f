use std::io::Write as _;
use std::time::Instant;

use node::{Change, Event, Outcome, Reporter};
use rustix::termios::tcgetwinsize;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;

use crate::commands::Events;

/// Shows events as they come: one owner of the terminal.
pub struct Progress {
    reporter: Option<Reporter>,
    task: JoinHandle<()>,
}

/// How events are shown.
#[derive(Debug, Clone, Copy)]
pub struct View {
    events: Option<Events>,
    /// Show unchanged steps too.
    verbose: bool,
    /// Show what would change, with diffs.
    dry_run: bool,
}

impl Progress {
    /// Begins to show events.
    pub fn start(events: Option<Events>, verbose: bool, dry_run: bool) -> Self {
        let (sender, receiver) = unbounded_channel();
        let view = View { events, verbose, dry_run };
        let reporter = Reporter::new(move |event| {
            // a reader that has gone away is no reason to stop
            let _ = sender.send(event);
        });
        Self { reporter: Some(reporter), task: tokio::spawn(show(receiver, view)) }
    }

    /// Where events go.
    pub fn reporter(&self) -> Reporter {
        self.reporter.clone().unwrap_or_default()
    }

    /// Shows what is left, and ends. Every other copy of the reporter must be gone by then.
    pub async fn finish(mut self) {
        self.reporter = None;
        // the task can only fail by a panic, which has been printed
        let _ = self.task.await;
    }
}

async fn show(mut events: UnboundedReceiver<Event>, view: View) {
    let mut screen = Screen::new(view);
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(250));
    loop {
        tokio::select! {
            event = events.recv() => match event {
                None => break,
                Some(event) => screen.event(&event),
            },
            _ = tick.tick() => screen.redraw(),
        }
    }
    screen.clear();
}

struct Screen {
    view: View,
    /// Columns of the terminal; None when stderr is none.
    live: bool,
    line: Option<(String, Instant)>,
}

impl Screen {
    fn new(view: View) -> Self {
        let live = view.events.is_none() && super::is_live();
        Self { view, live, line: None }
    }

    fn event(&mut self, event: &Event) {
        if self.view.events == Some(Events::Json) {
            // a reader that has gone away is no reason to stop half-way
            if let Ok(line) = serde_json::to_string(event) {
                let mut out = std::io::stdout().lock();
                let _ = writeln!(out, "{line}").and_then(|()| out.flush());
            }
            return;
        }
        match event {
            Event::StepStarted { step, index, total } => self.doing(format!("[{index}/{total}] {step}"), false),
            Event::Waiting { step, what } => self.doing(format!("{step}: {what}"), true),
            other => {
                for line in lines(other, self.view) {
                    self.clear();
                    anstream::eprintln!("{line}");
                }
                self.line = None;
            }
        }
    }

    /// What goes on now: rewritten in place on a terminal; elsewhere a wait gets a line of its own.
    fn doing(&mut self, what: String, waiting: bool) {
        if self.live {
            self.line = Some((what, Instant::now()));
            self.redraw();
        } else if waiting {
            anstream::eprintln!("  {what}");
        }
    }

    fn redraw(&mut self) {
        if let (true, Some((what, since))) = (self.live, &self.line) {
            let width = tcgetwinsize(std::io::stderr()).map_or(80, |s| usize::from(s.ws_col).max(20));
            let text = format!("{what} ({} s)", since.elapsed().as_secs());
            let text: String = text.chars().filter(|c| !c.is_control()).take(width - 1).collect();
            eprint!("\r\x1b[K{text}");
        }
    }

    fn clear(&self) {
        if self.live && self.line.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

fn lines(event: &Event, view: View) -> Vec<String> {
    let dim = anstyle::Style::new().dimmed();
    let bold = anstyle::Style::new().bold();
    match event {
        Event::StepStarted { .. } | Event::Waiting { .. } => Vec::new(),
        Event::StepDone { step, outcome, changes, ms } => {
            let (word, style) = match outcome {
                Outcome::Unchanged => ("unchanged", dim),
                Outcome::Changed => ("changed", bold),
                Outcome::WouldChange => ("would change", bold),
                Outcome::Failed => ("failed", bold),
            };
            let mut lines = vec![format!("{style}{word:<12}{style:#} {step} {dim}({ms} ms){dim:#}")];
            if view.dry_run || view.verbose {
                for Change { what, diff } in changes {
                    lines.push(format!("  {what}"));
                    lines.extend(diff.iter().flat_map(|d| d.lines()).map(|l| format!("    {l}")));
                }
            }
            lines
        }
        Event::Warning { what, hint } => {
            let yellow = anstyle::Style::new().fg_color(Some(anstyle::AnsiColor::Yellow.into()));
            let mut lines = vec![format!("{yellow}warning:{yellow:#} {what}")];
            lines.extend(hint.iter().map(|h| format!("  hint: {h}")));
            lines
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_say_it_without_colour() {
        let view = View { events: None, verbose: false, dry_run: true };
        let change = Change { what: "write /etc/x".into(), diff: Some("+a\n".into()) };
        let event = Event::StepDone { step: "file /etc/x".into(), outcome: Outcome::WouldChange, changes: vec![change], ms: 3 };
        let text: Vec<_> = lines(&event, view).iter().map(|l| anstream::adapter::strip_str(l).to_string()).collect();
        insta::assert_snapshot!(text.join("\n"), @r"
        would change file /etc/x (3 ms)
          write /etc/x
            +a
        ");
    }
}
