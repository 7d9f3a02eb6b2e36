//! How the contract is spoken: NATS, object store, telemetry, typed client.
