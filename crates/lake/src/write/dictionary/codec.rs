//! Compression of pages. Zstandard's state is large, and lives once a thread, not once a column.

use std::cell::RefCell;

use parquet::{basic::Compression, errors::ParquetError};
use zstd::bulk::Compressor;

thread_local! {
    static ZSTD: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
    static SNAPPY: RefCell<snap::raw::Encoder> = RefCell::new(snap::raw::Encoder::new());
}

/// Whether [`compress`] knows it.
pub(super) fn known(codec: Compression) -> bool {
    matches!(
        codec,
        Compression::UNCOMPRESSED
            | Compression::SNAPPY
            | Compression::ZSTD(_)
            | Compression::LZ4_RAW
    )
}

/// The page's bytes as they lie in the file.
pub(super) fn compress(page: Vec<u8>, codec: Compression) -> Result<Vec<u8>, ParquetError> {
    let mut compressed = compress_page(page, codec)?;
    // Codecs ask for as much as a page can become at worst, and pages wait for the end of the row group.
    compressed.shrink_to_fit();
    Ok(compressed)
}

fn compress_page(page: Vec<u8>, codec: Compression) -> Result<Vec<u8>, ParquetError> {
    let external = |error: Box<dyn std::error::Error + Send + Sync>| ParquetError::External(error);
    match codec {
        Compression::UNCOMPRESSED => Ok(page),
        Compression::SNAPPY => SNAPPY
            .with_borrow_mut(|encoder| encoder.compress_vec(&page))
            .map_err(|error| external(error.into())),
        Compression::LZ4_RAW => Ok(lz4_flex::block::compress(&page)),
        Compression::ZSTD(level) => ZSTD.with_borrow_mut(|slot| {
            let level = level.compression_level();
            let compressor = match slot {
                Some((of, compressor)) if *of == level => compressor,
                _ => {
                    let new = Compressor::new(level).map_err(|error| external(error.into()))?;
                    &mut slot.insert((level, new)).1
                }
            };
            compressor
                .compress(&page)
                .map_err(|error| external(error.into()))
        }),
        other => Err(ParquetError::NYI(format!("pages in {other}"))),
    }
}
