//! Where records end in a stretch of bytes: lines, records of CSV, messages behind their lengths.

use crate::formats::{CsvConfig, FormatConfig, protobuf::Framing};

/// What the bytes of a file or of standard input are made of.
#[derive(Clone, Debug)]
pub(crate) enum Records {
    Lines,
    Csv(CsvConfig),
    Frames(Framing),
}

impl Records {
    /// Those of a format; lines for formats that have no records of bytes.
    pub(crate) fn of(format: &FormatConfig) -> Self {
        match format {
            FormatConfig::Csv(csv) => Self::Csv(csv.clone()),
            FormatConfig::Protobuf(config) => Self::Frames(config.framing),
            FormatConfig::Json(_)
            | FormatConfig::Debezium(_)
            | FormatConfig::Parquet(_)
            | FormatConfig::Arrow(_) => Self::Lines,
        }
    }

    /// What a record is called.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Lines | Self::Csv(_) => "line",
            Self::Frames(_) => "message",
        }
    }

    /// The settings of CSV, where it is CSV.
    pub(crate) fn csv(&self) -> Option<&CsvConfig> {
        match self {
            Self::Csv(csv) => Some(csv),
            Self::Lines | Self::Frames(_) => None,
        }
    }

    /// Where the last whole record ends, of bytes that begin with one; zero where none does. No line
    /// ends in the first `searched` bytes.
    pub(crate) fn last_end(&self, bytes: &[u8], searched: usize) -> usize {
        if let Self::Frames(framing) = self {
            return framing.last_end(bytes);
        }
        match (memchr::memrchr(b'\n', &bytes[searched..]), self.csv()) {
            (None, _) => 0,
            (Some(_), Some(csv)) => csv.last_record_end(bytes),
            (Some(newline), None) => searched + newline + 1,
        }
    }
}
