//! Decompressing what clients send, within bounds.
//!
//! Every decoder reads all members or frames of its input to the end: what follows the last one is
//! an error. Memory is bounded per decoder: zstd windows of 128 MiB, 256 MiB for xz. Output is
//! not bounded here; whoever reads it counts.

use std::io::{self, BufRead, Read};

use brotli::Decompressor;
use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

/// A form that bytes arrive in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Zstd,
    Xz,
    Bzip2,
    Gzip,
    Br,
}

impl Encoding {
    /// Recognises a form by its first bytes, of which at least [`MAGIC_LEN`] are needed unless
    /// there are no more. Brotli has no mark, and plain bytes may be anything: both are `None`.
    pub(crate) fn sniff(start: &[u8]) -> Option<Encoding> {
        let marks: [(&[u8], Encoding); 4] = [
            (b"\x28\xb5\x2f\xfd", Encoding::Zstd),
            (b"\xfd7zXZ\0", Encoding::Xz),
            (b"BZh", Encoding::Bzip2),
            (b"\x1f\x8b", Encoding::Gzip),
        ];
        marks
            .into_iter()
            .find(|(mark, _)| start.starts_with(mark))
            .map(|(_, encoding)| encoding)
    }
}

/// Enough bytes to recognise any form.
pub(crate) const MAGIC_LEN: usize = 6;

/// Reads plain bytes from encoded ones.
pub(crate) enum Decoder<R: BufRead> {
    Identity(R),
    Zstd(zstd::Decoder<'static, R>),
    Xz(XzDecoder<R>),
    Bzip2(MultiBzDecoder<R>),
    Gzip(MultiGzDecoder<R>),
    Br(Box<Decompressor<R>>),
}

impl<R: BufRead> Decoder<R> {
    /// A decoder of `encoding` over `input`.
    ///
    /// **Errors**: when the library cannot allocate.
    pub(crate) fn new(encoding: Encoding, input: R) -> io::Result<Decoder<R>> {
        Ok(match encoding {
            Encoding::Identity => Decoder::Identity(input),
            Encoding::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Decoder::Zstd(decoder)
            }
            Encoding::Xz => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY_MAX, CONCATENATED)?;
                Decoder::Xz(XzDecoder::new_stream(input, stream))
            }
            Encoding::Bzip2 => Decoder::Bzip2(MultiBzDecoder::new(input)),
            Encoding::Gzip => Decoder::Gzip(MultiGzDecoder::new(input)),
            Encoding::Br => Decoder::Br(Box::new(Decompressor::new(input, BROTLI_BUFFER))),
        })
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Identity(input) => input.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
            Decoder::Xz(decoder) => decoder.read(buffer),
            Decoder::Bzip2(decoder) => decoder.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Br(decoder) => decoder.read(buffer),
        }
    }
}

const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const XZ_MEMORY_MAX: u64 = 256 << 20;
const BROTLI_BUFFER: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn encode(encoding: Encoding, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match encoding {
            Encoding::Identity => out.extend_from_slice(plain),
            Encoding::Zstd => out = zstd::encode_all(plain, 1).unwrap(),
            Encoding::Xz => {
                liblzma::read::XzEncoder::new(plain, 1)
                    .read_to_end(&mut out)
                    .map(drop)
                    .unwrap();
            }
            Encoding::Bzip2 => {
                bzip2::read::BzEncoder::new(plain, bzip2::Compression::fast())
                    .read_to_end(&mut out)
                    .map(drop)
                    .unwrap();
            }
            Encoding::Gzip => {
                flate2::read::GzEncoder::new(plain, flate2::Compression::fast())
                    .read_to_end(&mut out)
                    .map(drop)
                    .unwrap();
            }
            Encoding::Br => {
                brotli::CompressorWriter::new(&mut out, 4096, 1, 20)
                    .write_all(plain)
                    .unwrap();
            }
        }
        out
    }

    fn decode(encoding: Encoding, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Decoder::new(encoding, bytes)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    const ALL: [Encoding; 6] = [
        Encoding::Identity,
        Encoding::Zstd,
        Encoding::Xz,
        Encoding::Bzip2,
        Encoding::Gzip,
        Encoding::Br,
    ];

    #[test]
    fn every_form_round_trips_and_is_recognised() {
        let plain = b"some text, some more text, some text again".repeat(1000);
        for encoding in ALL {
            let encoded = encode(encoding, &plain);
            assert_eq!(decode(encoding, &encoded).unwrap(), plain, "{encoding:?}");
            let marked = !matches!(encoding, Encoding::Identity | Encoding::Br);
            assert_eq!(Encoding::sniff(&encoded), marked.then_some(encoding));
        }
    }

    #[test]
    fn several_members_are_one_stream() {
        for encoding in [
            Encoding::Zstd,
            Encoding::Xz,
            Encoding::Bzip2,
            Encoding::Gzip,
        ] {
            let twice = [encode(encoding, b"one "), encode(encoding, b"two")].concat();
            assert_eq!(
                decode(encoding, &twice).unwrap(),
                b"one two",
                "{encoding:?}"
            );
        }
    }

    #[test]
    fn a_truncated_stream_is_an_error() {
        let plain = b"some text, some more text, some text again".repeat(1000);
        for encoding in &ALL[1..] {
            let encoded = encode(*encoding, &plain);
            assert!(
                decode(*encoding, &encoded[..encoded.len() - 1]).is_err(),
                "{encoding:?}"
            );
            assert!(
                decode(*encoding, &encoded[..encoded.len() / 2]).is_err(),
                "{encoding:?}"
            );
        }
    }

    #[test]
    fn what_follows_the_stream_is_an_error() {
        for encoding in [
            Encoding::Zstd,
            Encoding::Xz,
            Encoding::Bzip2,
            Encoding::Gzip,
        ] {
            let tail = [encode(encoding, b"one"), b"garbage garbage".to_vec()].concat();
            assert!(decode(encoding, &tail).is_err(), "{encoding:?}");
        }
    }

    #[test]
    fn a_huge_zstd_window_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.write_all(&[7; 1000]).unwrap();
        // Unknown content size, so that the window is in the header.
        let encoded = encoder.finish().unwrap();
        assert!(decode(Encoding::Zstd, &encoded).is_err());
    }
}
