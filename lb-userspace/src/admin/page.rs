//! The page for people.

use crate::{cli::short, observe::Status};

/// The page, which renews itself every two seconds.
pub(super) fn render(status: &Status) -> String {
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" \
         content=\"2\"><title>lb</title><style>body{font:15px/1.5 system-ui,sans-serif;margin:2em;\
         color:#222}table{border-collapse:collapse;margin:0 0 2em}th,td{padding:.2em 1em .2em 0;\
         text-align:left;border-bottom:1px solid #ddd}th{font-weight:600}.n{text-align:right;\
         font-variant-numeric:tabular-nums}.up{color:#17672c}.down{color:#b3261e;font-weight:600}\
         .drain,.maint,.unknown{color:#8a5a00}</style><h1>lb</h1>",
    );
    if let Some(controller) = &status.controller {
        page += &format!(
            "<p>Version {}, process {}, {}",
            escape(&controller.version),
            controller.pid,
            escape(&controller.config)
        );
        for interface in &controller.interfaces {
            page += &format!("; {} in {} mode", escape(&interface.name), escape(&interface.mode));
        }
        page += ".</p>";
    }
    page += "<h2>Services</h2><table><tr><th>Service<th>Address<th>Backends up<th class=n>Flows\
             <th class=n>New<th class=n>Bytes in<th class=n>Bytes out</tr>";
    for service in &status.services {
        page += &format!(
            "<tr><td>{}<td>{}<td class={}>{} of {}<td class=n>{}<td class=n>{}<td class=n>{}\
             <td class=n>{}</tr>",
            escape(&service.name),
            escape(&service.bind.join(" ")),
            if service.backends_up > 0 { "up" } else { "down" },
            service.backends_up,
            service.backends_total,
            short(service.flows),
            short(service.new_flows),
            short(service.bytes),
            short(service.reply_bytes),
        );
    }
    page += "</table><h2>Backends</h2><table><tr><th>Service<th>Backend<th>Address<th>State\
             <th class=n>Weight<th class=n>Share<th class=n>Flows<th class=n>New<th>Check</tr>";
    for backend in &status.backends {
        page += &format!(
            "<tr><td>{}<td>{}<td>{}<td class={state}>{state}<td class=n>{}<td class=n>{:.1}%\
             <td class=n>{}<td class=n>{}<td>{}</tr>",
            escape(&backend.service),
            escape(&backend.name),
            escape(&backend.address),
            backend.weight,
            backend.share * 100.0,
            short(backend.flows),
            short(backend.new_flows),
            escape(&backend.check.detail),
            state = backend.state,
        );
    }
    page + "</table></html>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
