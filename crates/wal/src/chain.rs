//! The chain of timelines that a log is on, with its spans at hand.

use understudy_types::{Lsn, SegmentNo, SegmentSize, Span, TimelineHistory, TimelineId};

/// A timeline history and the spans that it describes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Chain {
    history: TimelineHistory,
    spans: Vec<Span>,
}

impl Chain {
    pub(crate) fn new(history: TimelineHistory) -> Self {
        let spans = history.spans();
        Self { history, spans }
    }

    pub(crate) fn history(&self) -> &TimelineHistory {
        &self.history
    }

    /// The present timeline; zero before the first.
    pub(crate) fn latest(&self) -> TimelineId {
        self.history.latest()
    }

    /// The piece of the chain that a record at `start` belongs to; none before the begin of the log.
    pub(crate) fn span_at(&self, start: Lsn) -> Option<&Span> {
        self.spans.iter().rev().find(|span| span.begin <= start)
    }

    /// The timeline of the record that ends at `end`; zero where none does.
    pub(crate) fn timeline_ending_at(&self, end: Lsn) -> TimelineId {
        let last_byte = Lsn::new(end.get().saturating_sub(1));
        self.span_at(last_byte).map_or(TimelineId::NONE, |span| span.timeline)
    }

    /// The timeline in the name of the file that holds all of a segment: the last that wrote into it.
    pub(crate) fn timeline_of_file(&self, segment: SegmentNo, size: SegmentSize) -> TimelineId {
        self.timeline_ending_at(size.start_of(segment.next()))
    }

    /// The chain once the log ends at `to`: without the timelines that begin beyond.
    pub(crate) fn cut(&self, to: Lsn) -> Chain {
        let timeline = self.span_at(to).map_or(TimelineId::NONE, |span| span.timeline);
        Chain::new(self.history.up_to(timeline))
    }
}
