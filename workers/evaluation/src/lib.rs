//! Query sets, retrieval metrics, the gate, reports.
