//! The codec of data files, as the user writes it: `snappy`, `zstd(3)`, `none`.

use std::{fmt, str::FromStr};

use calve_engine::error::Error;
use parquet::basic::{BrotliLevel, Compression as Codec, GzipLevel, ZstdLevel};
use serde::{Deserialize, Serialize};

/// Codec and level of Parquet pages. Default: `zstd(1)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression(Codec);

const KNOWN: &str =
    "one of none, snappy, lz4, gzip, gzip(0..9), zstd, zstd(1..22), brotli, brotli(0..11)";

impl Compression {
    /// For the Parquet writer.
    pub fn codec(self) -> Codec {
        self.0
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self(Codec::ZSTD(ZstdLevel::default()))
    }
}

impl From<Codec> for Compression {
    fn from(codec: Codec) -> Self {
        Self(codec)
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error::config(format!("unknown compression: value={text}")).hint(KNOWN);
        let lower = text.trim().to_ascii_lowercase();
        let (name, level) = match lower.split_once('(') {
            Some((name, rest)) => {
                let level = rest.strip_suffix(')').ok_or_else(unknown)?;
                (
                    name.trim(),
                    Some(level.trim().parse::<u32>().map_err(|_| unknown())?),
                )
            }
            None => (lower.as_str(), None),
        };
        let out_of_range = |error: parquet::errors::ParquetError| {
            Error::config(format!("compression level out of range: value={text}"))
                .because(error)
                .hint(KNOWN)
        };
        let codec = match (name, level) {
            ("none" | "uncompressed", None) => Codec::UNCOMPRESSED,
            ("snappy", None) => Codec::SNAPPY,
            ("lz4" | "lz4_raw", None) => Codec::LZ4_RAW,
            ("gzip", None) => Codec::GZIP(GzipLevel::default()),
            ("gzip", Some(level)) => Codec::GZIP(GzipLevel::try_new(level).map_err(out_of_range)?),
            ("zstd", None) => Codec::ZSTD(ZstdLevel::default()),
            ("zstd", Some(level)) => {
                let level = i32::try_from(level).map_err(|_| unknown())?;
                Codec::ZSTD(ZstdLevel::try_new(level).map_err(out_of_range)?)
            }
            ("brotli", None) => Codec::BROTLI(BrotliLevel::default()),
            ("brotli", Some(level)) => {
                Codec::BROTLI(BrotliLevel::try_new(level).map_err(out_of_range)?)
            }
            _ => return Err(unknown()),
        };
        Ok(Self(codec))
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Codec::UNCOMPRESSED => f.write_str("none"),
            Codec::SNAPPY => f.write_str("snappy"),
            Codec::GZIP(level) => write!(f, "gzip({})", level.compression_level()),
            Codec::LZO => f.write_str("lzo"),
            Codec::BROTLI(level) => write!(f, "brotli({})", level.compression_level()),
            Codec::LZ4 | Codec::LZ4_RAW => f.write_str("lz4"),
            Codec::ZSTD(level) => write!(f, "zstd({})", level.compression_level()),
        }
    }
}

impl Serialize for Compression {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Compression {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error: Error| {
            serde::de::Error::custom(match error.hint_text() {
                Some(hint) => format!("{} ({hint})", error.message()),
                None => error.message().to_owned(),
            })
        })
    }
}

impl schemars::JsonSchema for Compression {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Compression".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": format!("Codec of data files, with its level in brackets: {KNOWN}."),
            "default": "zstd(1)",
            "pattern": r"^(none|uncompressed|snappy|lz4(_raw)?|(gzip|zstd|brotli)(\(\d+\))?)$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_refuses_the_rest() {
        for text in [
            "none",
            "snappy",
            "lz4",
            "gzip(9)",
            "zstd(22)",
            "brotli(11)",
            "zstd(1)",
        ] {
            let codec: Compression = text.parse().expect(text);
            assert_eq!(codec.to_string(), text);
        }
        assert_eq!(
            "zstd".parse::<Compression>().expect("zstd").to_string(),
            "zstd(1)"
        );
        for bad in [
            "",
            "zip",
            "zstd(",
            "zstd(0)",
            "zstd(23)",
            "zstd(-1)",
            "snappy(1)",
            "gzip(10)",
        ] {
            assert!(bad.parse::<Compression>().is_err(), "{bad}");
        }
    }
}
