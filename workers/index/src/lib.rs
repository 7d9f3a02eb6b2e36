//! Gallery shards: files, scan, exact top-K.
