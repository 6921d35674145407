//! The web server that stands for a management server.

use std::path::Path;

/// The configuration of a server that keeps its files in `home`.
pub(crate) fn configuration(home: &Path, name: &str, addresses: &[&str]) -> String {
    let home = home.display();
    let listen: String =
        addresses.iter().map(|address| format!("    listen {address};\n")).collect();
    format!(
        "user root;\nworker_processes 1;\npid {home}/pid;\nerror_log {home}/error.log;\n\
         events {{ worker_connections 4096; }}\nhttp {{\n  access_log off;\n  \
         keepalive_requests 100000000;\n  client_max_body_size 0;\n  client_body_temp_path \
         {home}/tmp;\n  proxy_temp_path {home}/tmp;\n  fastcgi_temp_path {home}/tmp;\n  \
         uwsgi_temp_path {home}/tmp;\n  scgi_temp_path {home}/tmp;\n  server {{\n\
         {listen}    location /client/ {{ return 200 \"{name}\\n\"; }}\n    location /peer {{ return 200 \
         \"$remote_addr $remote_port\"; }}\n    location /big {{ root \
         {home}/..; }}\n    location /upload/ {{ root {home}; dav_methods PUT; }}\n  }}\n}}\n"
    )
}
