//! Three nats-servers that are one cluster: streams may have three copies.

use std::net::TcpListener;
use std::path::Path;

use crate::broker::Broker;

/// Starts them. They find each other within a second or two; each can be killed and started again.
pub fn start(dir: &Path) -> Vec<Broker> {
    let ports = free_ports::<3>();
    let routes: Vec<String> = ports.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
    let routes = routes.join(", ");
    let node = |(number, port): (usize, &u16)| {
        let folder = dir.join(format!("node-{number}"));
        std::fs::create_dir_all(&folder).expect("a folder for a node");
        let text = format!(
            "server_name: node-{number}\njetstream {{ store_dir: \"jetstream\" }}\n\
             cluster {{ name: trio, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}\n"
        );
        let config = folder.join("server.conf");
        std::fs::write(&config, text).expect("a configuration is written");
        Broker::start_with(&folder, Some(config), false)
    };
    ports.iter().enumerate().map(node).collect()
}

/// Ports on which nobody listens now. Another program could take one before it is used; none here does.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}
