//! Messages, keys, table schemas and the ranking order: the contract between the parts.
