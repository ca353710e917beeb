//! The progress bar: on a terminal only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// How often it is drawn.
const INTERVAL: Duration = Duration::from_millis(100);

/// Of bytes read, where their number is known.
pub struct Progress {
    bar: ProgressBar,
    bytes_read: Arc<AtomicU64>,
    began: Instant,
    drawn: Instant,
}

impl Progress {
    /// Shows it on standard error; nothing where that is no terminal.
    pub fn start(bytes_total: Option<u64>, bytes_read: Arc<AtomicU64>) -> Self {
        let (bar, template) = match bytes_total {
            Some(total) => (ProgressBar::new(total), "{bar:30} {percent:>3}%  {elapsed_precise}  {msg}"),
            None => (ProgressBar::new_spinner(), "{spinner}  {bytes} read  {elapsed_precise}  {msg}"),
        };
        let style = ProgressStyle::with_template(template).expect("the template is well-formed");
        bar.set_style(style);
        let now = Instant::now();
        Self { bar, bytes_read, began: now, drawn: now }
    }

    /// Draws what is so, if it is time to.
    pub fn update(&mut self, acknowledged: u64, in_flight: usize) {
        if self.drawn.elapsed() < INTERVAL {
            return;
        }
        self.drawn = Instant::now();
        let per_second = acknowledged as f64 / self.began.elapsed().as_secs_f64();
        self.bar.set_position(self.bytes_read.load(Ordering::Relaxed));
        self.bar.set_message(format!(
            "{} acknowledged, {per_second:.0}/s, {in_flight} commits in flight",
            HumanCount(acknowledged)
        ));
        self.bar.tick();
    }

    /// Takes it away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
