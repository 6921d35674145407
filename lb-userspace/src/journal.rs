//! The controller's latest events, kept for `lb events`: what it logs from `info` on, whatever the log's own
//! filter lets through.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tracing::field::{Field, Visit};
use tracing_subscriber::{Layer, layer::Context};

/// So many events are kept.
const KEPT: usize = 1000;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, as RFC 3339 says, in UTC.
    pub time: String,
    /// `INFO`, `WARN` or `ERROR`.
    pub level: String,
    /// What, in words.
    pub message: String,
    /// To whom, and how.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// The events. Copies share them.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    events: Mutex<VecDeque<Event>>,
    /// How many there have been.
    count: watch::Sender<u64>,
}

impl Journal {
    /// One without any.
    pub fn new() -> Self {
        Self(Arc::new(Shared { events: Mutex::default(), count: watch::Sender::new(0) }))
    }

    /// Tells how many events there have been, whenever there is another.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.count.subscribe()
    }

    /// The events that are kept of those after the first so many, and how many there have been.
    pub fn after(&self, number: u64) -> (Vec<Event>, u64) {
        let events = self.events();
        let count = *self.0.count.borrow();
        let new = usize::try_from(count.saturating_sub(number)).unwrap_or(usize::MAX);
        let old = events.len().saturating_sub(new);
        (events.iter().skip(old).cloned().collect(), count)
    }

    fn add(&self, event: Event) {
        let mut events = self.events();
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(event);
        self.0.count.send_modify(|count| *count += 1);
    }

    fn events(&self) -> MutexGuard<'_, VecDeque<Event>> {
        // Each change of it is complete.
        self.0.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: tracing::Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { message, fields } = fields;
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let level = event.metadata().level().to_string();
        self.add(Event { time, level, message, fields });
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    fields: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.fields.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.set(field, format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn events_are_kept_with_their_fields_and_the_oldest_go_first() {
        let journal = Journal::new();
        let subscriber = tracing_subscriber::registry().with(journal.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(backend = "mgmt01", entries = 7, detail = %"refused", "down");
        });
        let (events, count) = journal.after(0);
        assert_eq!((events.len(), count), (1, 1));
        let text = serde_json::to_string(&events[0]).expect("JSON");
        let said =
            r#""level":"WARN","message":"down","backend":"mgmt01","detail":"refused","entries":7}"#;
        assert!(text.ends_with(said), "{text}");
        assert_eq!(serde_json::from_str::<Event>(&text).expect("an event"), events[0]);

        let first = events[0].clone();
        for number in 0..KEPT {
            journal.add(Event { message: number.to_string(), ..first.clone() });
        }
        let (events, count) = journal.after(0);
        assert_eq!((events.len(), count), (KEPT, KEPT as u64 + 1));
        assert_eq!(events[0].message, "0");
        let (events, _) = journal.after(count - 2);
        let messages: Vec<_> = events.iter().map(|event| event.message.as_str()).collect();
        assert_eq!(messages, ["998", "999"]);
        assert!(journal.after(count).0.is_empty());
    }
}
