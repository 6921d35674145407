//! How much a test does, which the environment sets.

use std::{env, str::FromStr};

/// A number that a variable of the environment sets, or else the default.
///
/// # Panics
///
/// It is set to something else.
pub fn setting<T: FromStr>(name: &str, default: T) -> T {
    match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} isn't a number")),
        Err(_) => default,
    }
}
