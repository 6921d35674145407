//! What goes wrong for longer than a moment, said once.

use std::collections::BTreeMap;

/// The troubles that last.
#[derive(Debug, Default)]
pub(super) struct Troubles(BTreeMap<&'static str, String>);

impl Troubles {
    /// Notes how something that is done again and again went: a failure is logged when it's new,
    /// and its end as well.
    pub(super) fn note(&mut self, what: &'static str, result: Result<(), String>) {
        match result {
            Ok(()) => {
                if let Some(trouble) = self.0.remove(what) {
                    tracing::info!("over: {trouble}");
                }
            }
            Err(trouble) => {
                if self.0.get(what) != Some(&trouble) {
                    tracing::error!("{trouble}");
                    self.0.insert(what, trouble);
                }
            }
        }
    }
}
