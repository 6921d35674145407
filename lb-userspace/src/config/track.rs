//! Backends whose state another service's check decides.

use std::collections::HashMap;

use toml::Spanned;

use super::{Service, Tracked, file, validate::Validator};

impl Validator {
    /// Finds out which backends track which: each may do so itself, or its service for all of them, by name.
    pub(super) fn resolve_tracks(&mut self, file: &file::File, services: &mut [Service]) {
        let mut wanted: HashMap<(usize, String), (Tracked, &Spanned<String>)> = HashMap::new();
        for (number, written) in file.service.iter().map(Spanned::get_ref).enumerate() {
            let of_service = written.check.as_ref().and_then(|check| check.track.as_ref());
            for backend in written.backend.iter().map(Spanned::get_ref) {
                let name = backend.name.get_ref();
                let tracked = match (&backend.track, of_service) {
                    (Some(own), _) => self.value(own, tracked).map(|tracked| (tracked, own)),
                    (None, Some(service)) => {
                        let tracked =
                            Tracked { service: service.get_ref().clone(), backend: name.clone() };
                        Some((tracked, service))
                    }
                    (None, None) => None,
                };
                wanted.extend(tracked.map(|tracked| ((number, name.clone()), tracked)));
            }
        }
        if wanted.is_empty() {
            return;
        }
        let places: HashMap<Tracked, (usize, String)> = services
            .iter()
            .enumerate()
            .flat_map(|(number, service)| {
                service.backends.iter().map(move |backend| {
                    let (service, name) = (service.name.clone(), backend.name.clone());
                    (Tracked { service, backend: name.clone() }, (number, name))
                })
            })
            .collect();
        for ((number, name), (tracked, written)) in &wanted {
            let problem = match places.get(tracked) {
                None => format!("there is no backend {tracked}"),
                Some(place) if wanted.contains_key(place) => {
                    format!("{tracked} tracks another one itself")
                }
                Some(_) => {
                    let backends = services[*number].backends.iter_mut();
                    for backend in backends.filter(|backend| backend.name == *name) {
                        backend.track = Some(tracked.clone());
                    }
                    continue;
                }
            };
            let hint = "name one that is checked, as in \"cloudstack-ui/mgmt01\"";
            self.problem(written.span(), problem, hint);
        }
    }
}

fn tracked(text: &str) -> Result<Tracked, super::values::Wrong> {
    match text.split_once('/') {
        Some((service, backend)) if !service.is_empty() && !backend.is_empty() => {
            Ok(Tracked { service: service.to_owned(), backend: backend.to_owned() })
        }
        _ => Err((
            format!("\"{text}\" names no backend"),
            "write SERVICE/BACKEND, as in \"cloudstack-ui/mgmt01\"",
        )),
    }
}
