//! Plain, partitioned Parquet: layout, staging, publication.
