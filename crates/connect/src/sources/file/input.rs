//! Bytes of one file, local or in an object store, plain or compressed, from any position.
//!
//! Decompression is by push, so that blocking reads and asynchronous streams share it. A read
//! appends whole pieces only after they have arrived: dropping it loses nothing.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    time::Duration,
};

use calve_engine::{Error, Result, stores::ObjectFolder};
use flate2::write::MultiGzDecoder;
use futures::{StreamExt, stream::BoxStream};
use object_store::{Error as StoreError, GetOptions, GetRange};
use zstd::stream::raw::{InBuffer, Operation, OutBuffer};

use super::{
    Compression,
    list::{Location, identity},
    text::replaced,
};

/// Compressed bytes that are read at once.
const PIECE_BYTES: usize = 256 << 10;

/// How often a stream of an object store may break off without a byte in between.
const STREAM_TRIES: u32 = 5;
const STREAM_PAUSE: Duration = Duration::from_millis(200);

enum Bytes {
    Local(File),
    Remote(Box<Remote>),
}

/// An object, or a file of an HTTP server.
struct Remote {
    folder: ObjectFolder,
    path: object_store::path::Path,
    at: u64,
    stream: Option<BoxStream<'static, object_store::Result<bytes::Bytes>>>,
    /// Its identity and size, from the first answer on; the identity also from before.
    id: Option<String>,
    size: Option<u64>,
    /// Its ETag, as the store wrote it.
    etag: Option<String>,
}

enum Inflate {
    Plain,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Zstd {
        decoder: zstd::stream::raw::Decoder<'static>,
        open: bool,
    },
}

/// The text of one file.
pub(crate) struct Input {
    name: String,
    bytes: Bytes,
    inflate: Inflate,
    /// Compressed bytes on their way.
    piece: Vec<u8>,
    /// Text that was inflated and not given out.
    rest: Vec<u8>,
    /// Any compressed byte was read.
    inflated: bool,
}

impl Input {
    /// Opens a file at its beginning. `id`: what it was known by when it was read before.
    pub(crate) fn open(name: &str, location: &Location, id: Option<&str>) -> Result<Self> {
        let bytes = match location {
            Location::Local(path) => {
                let file = File::open(path);
                Bytes::Local(file.map_err(|e| Error::io(format!("cannot open file={name}"), e))?)
            }
            Location::Remote { folder, path } => Bytes::Remote(Box::new(Remote {
                folder: folder.clone(),
                path: path.clone(),
                at: 0,
                stream: None,
                // A file that may grow is compared by what was read of it.
                id: id.filter(|_| folder.is_whole()).map(str::to_owned),
                size: None,
                etag: None,
            })),
        };
        Ok(Self {
            name: name.to_owned(),
            bytes,
            inflate: Inflate::Plain,
            piece: Vec::new(),
            rest: Vec::new(),
            inflated: false,
        })
    }

    /// The first bytes as they lie on the disk, at most `most`. Leaves the position at 0.
    pub(crate) async fn head(&mut self, most: usize) -> Result<Vec<u8>> {
        self.seek(0)?;
        let mut head = Vec::new();
        while head.len() < most && self.bytes.fill(&self.name, &mut head, most).await? > 0 {}
        head.truncate(most);
        self.seek(0)?;
        Ok(head)
    }

    /// Chooses how to decompress; the position must be 0.
    pub(crate) fn decompress(&mut self, compression: Compression) -> Result<()> {
        self.inflate = match compression {
            Compression::Gzip => Inflate::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            Compression::Zstd => Inflate::Zstd {
                decoder: zstd::stream::raw::Decoder::new()
                    .map_err(|e| Error::internal("zstd cannot start").because(e))?,
                open: false,
            },
            Compression::Auto | Compression::None => Inflate::Plain,
        };
        Ok(())
    }

    /// Identity and size of the object that is read, as soon as anything of it was; none of a local
    /// file.
    pub(crate) fn object(&self) -> Option<(Option<&str>, u64)> {
        match &self.bytes {
            Bytes::Remote(remote) => Some((remote.id.as_deref(), remote.size?)),
            Bytes::Local(_) => None,
        }
    }

    /// Goes to a byte of the file as it lies on the disk.
    pub(crate) fn seek(&mut self, to: u64) -> Result<()> {
        match &mut self.bytes {
            Bytes::Local(file) => {
                let done = file.seek(SeekFrom::Start(to));
                done.map_err(|e| Error::io(format!("cannot seek file={}", self.name), e))?;
            }
            Bytes::Remote(remote) => {
                remote.stream = None;
                remote.at = to;
            }
        }
        Ok(())
    }

    /// Appends about `want` bytes of text; 0 at the end. Reads nothing when `want` is 0.
    pub(crate) async fn read(&mut self, into: &mut Vec<u8>, want: usize) -> Result<usize> {
        if matches!(self.inflate, Inflate::Plain) {
            return self.bytes.fill(&self.name, into, want).await;
        }
        let before = into.len();
        into.append(&mut self.rest);
        while into.len() - before < want {
            let read = self
                .bytes
                .fill(&self.name, &mut self.piece, PIECE_BYTES)
                .await?;
            self.inflated |= read > 0;
            let inflated = self.inflate.push(&self.piece, into);
            self.piece.clear();
            inflated.map_err(|e| {
                Error::config(format!("cannot decompress file={}", self.name))
                    .because(e)
                    .hint("the file is damaged, or `compression` does not say what it is")
            })?;
            if read == 0 {
                break;
            }
        }
        Ok(into.len() - before)
    }

    /// Appends at most `want` bytes of text; what was inflated beyond them is kept for the next read.
    pub(crate) async fn read_exactly(&mut self, into: &mut Vec<u8>, want: usize) -> Result<usize> {
        let mut rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            self.read(&mut rest, 1).await?;
        }
        let taken = rest.len().min(want);
        into.extend_from_slice(&rest[..taken]);
        rest.drain(..taken);
        self.rest = rest;
        Ok(taken)
    }

    /// Whether the compressed text stops in the middle: the file is cut off, or still being written.
    pub(crate) fn is_cut(&mut self) -> bool {
        match &mut self.inflate {
            Inflate::Plain => false,
            _ if !self.inflated => false,
            Inflate::Gzip(decoder) => decoder.try_finish().is_err(),
            Inflate::Zstd { open, .. } => *open,
        }
    }
}

impl Bytes {
    async fn fill(&mut self, name: &str, into: &mut Vec<u8>, want: usize) -> Result<usize> {
        match self {
            Self::Local(file) => {
                into.reserve(want);
                let read = Read::by_ref(file).take(want as u64).read_to_end(into);
                read.map_err(|e| Error::io(format!("cannot read file={name}"), e))
            }
            Self::Remote(remote) => remote.fill(name, into, want).await,
        }
    }
}

impl Remote {
    /// A stream that breaks off, or that a slow pipeline let run into the store's time limit, is
    /// opened again where it ended.
    async fn fill(&mut self, name: &str, into: &mut Vec<u8>, want: usize) -> Result<usize> {
        let mut read = 0;
        let mut broken = 0;
        while read < want {
            if !self.open_stream(name).await? {
                break;
            }
            let Some(open) = &mut self.stream else {
                break;
            };
            match open.next().await {
                None => break,
                Some(Ok(piece)) => {
                    into.extend_from_slice(&piece);
                    read += piece.len();
                    self.at += piece.len() as u64;
                    broken = 0;
                }
                Some(Err(error)) => {
                    self.stream = None;
                    broken += 1;
                    let what = format!("cannot read file={name}");
                    let failed = self.folder.failed(&what, "", &error);
                    if broken > STREAM_TRIES {
                        return Err(failed);
                    }
                    tracing::debug!(file = name, error = %failed, "reading on from where it broke off");
                    tokio::time::sleep(STREAM_PAUSE * broken).await;
                }
            }
        }
        Ok(read)
    }

    /// Opens the stream at the position, where it is not open; false behind the end.
    async fn open_stream(&mut self, name: &str) -> Result<bool> {
        let Self {
            folder,
            path,
            at,
            stream,
            id,
            size,
            etag,
        } = self;
        if stream.is_some() {
            return Ok(true);
        }
        let options = GetOptions {
            // A whole file is asked for without a range, which not every HTTP server knows.
            range: (*at > 0).then_some(GetRange::Offset(*at)),
            if_match: etag.clone().filter(|_| folder.is_whole()),
            ..GetOptions::default()
        };
        let failed = |e: &StoreError| folder.failed(&format!("cannot read file={name}"), "", e);
        match folder.store().get_opts(path, options).await {
            Ok(got) => {
                let now = identity(folder, &got.meta);
                if folder.is_whole() && id.is_some() && now.is_some() && *id != now {
                    return Err(replaced(name, "replaced"));
                }
                *id = id.take().or(now);
                *size = Some(got.meta.size);
                etag.clone_from(&got.meta.e_tag);
                *stream = Some(got.into_stream());
                Ok(true)
            }
            Err(StoreError::Precondition { .. }) => Err(replaced(name, "replaced")),
            Err(error @ StoreError::NotSupported { .. }) => Err(failed(&error).hint(
                "the server cannot send a file from the middle on (no range requests), so reading \
                 cannot go on where it stopped: copy the file to a disk or an object store, or start \
                 over with `calve checkpoint reset FILE`",
            )),
            // Asking for what lies behind the end is an error of its own in most stores.
            Err(error) if *at > 0 => {
                let head = GetOptions {
                    head: true,
                    ..GetOptions::default()
                };
                let meta = folder.store().get_opts(path, head).await;
                let meta = meta.map_err(|e| failed(&e))?.meta;
                if meta.size > *at {
                    return Err(failed(&error));
                }
                *size = Some(meta.size);
                Ok(false)
            }
            Err(error) => Err(failed(&error)),
        }
    }
}

impl Inflate {
    fn push(&mut self, piece: &[u8], into: &mut Vec<u8>) -> std::io::Result<()> {
        match self {
            Self::Plain => into.extend_from_slice(piece),
            Self::Gzip(decoder) => {
                decoder.write_all(piece)?;
                decoder.flush()?;
                into.append(decoder.get_mut());
            }
            Self::Zstd { decoder, open } => {
                let mut source = InBuffer::around(piece);
                loop {
                    into.reserve(PIECE_BYTES);
                    let at = into.len();
                    let capacity = into.capacity();
                    let mut target = OutBuffer::around_pos(into, at);
                    let taken = source.pos;
                    let hint = decoder.run(&mut source, &mut target)?;
                    let full = target.pos() == capacity;
                    // Without progress the hint speaks of a frame that has not begun.
                    if source.pos > taken || target.pos() > at {
                        *open = hint != 0;
                    }
                    if source.pos == piece.len() && !full {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}
