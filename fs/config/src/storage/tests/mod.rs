//! The sections of the drivers, as an operator writes them.

mod azure_gcs;
mod swift_oss;
