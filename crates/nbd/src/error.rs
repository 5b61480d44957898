//! What can go wrong with a disk behind NBD, and who caused it.
//!
//! ```text
//!   Error::Connect, Lost, TimedOut     the way there
//!   Error::Refused, Remote             the server said no, and its words
//!   Error::Protocol                    the server broke the rules; the connection is given up
//!   Error::OutOfBounds, Unaligned ...  the caller asked for what cannot be; nothing was sent
//! ```
use std::{io, sync::Arc};

/// An NBD error number: the whole vocabulary in which a server refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// EPERM: the export is read-only, or the operation is not allowed.
    NotPermitted,
    /// EIO: the disk behind the export failed.
    Io,
    /// ENOMEM: the server is out of memory.
    NoMemory,
    /// EINVAL: the request makes no sense: out of bounds, not aligned, unknown flag.
    Invalid,
    /// ENOSPC: no room, or a write past the end.
    NoSpace,
    /// EOVERFLOW: the request is larger than the server will serve at once.
    Overflow,
    /// ENOTSUP: only in answer to a fast zero that would not be fast.
    NotSupported,
    /// ESHUTDOWN: the server is going away.
    ShuttingDown,
}

impl ErrorCode {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        match self {
            ErrorCode::NotPermitted => 1,
            ErrorCode::Io => 5,
            ErrorCode::NoMemory => 12,
            ErrorCode::Invalid => 22,
            ErrorCode::NoSpace => 28,
            ErrorCode::Overflow => 75,
            ErrorCode::NotSupported => 95,
            ErrorCode::ShuttingDown => 108,
        }
    }

    /// The meaning of a number from the wire. The protocol wants an unknown number read as EINVAL.
    pub fn from_number(number: u32) -> ErrorCode {
        match number {
            1 => ErrorCode::NotPermitted,
            5 => ErrorCode::Io,
            12 => ErrorCode::NoMemory,
            28 => ErrorCode::NoSpace,
            75 => ErrorCode::Overflow,
            95 => ErrorCode::NotSupported,
            108 => ErrorCode::ShuttingDown,
            _ => ErrorCode::Invalid,
        }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ErrorCode::NotPermitted => "not permitted (EPERM)",
            ErrorCode::Io => "input/output error (EIO)",
            ErrorCode::NoMemory => "out of memory (ENOMEM)",
            ErrorCode::Invalid => "invalid request (EINVAL)",
            ErrorCode::NoSpace => "no space left (ENOSPC)",
            ErrorCode::Overflow => "request too large (EOVERFLOW)",
            ErrorCode::NotSupported => "not supported (ENOTSUP)",
            ErrorCode::ShuttingDown => "server shutting down (ESHUTDOWN)",
        })
    }
}

impl std::error::Error for ErrorCode {}

impl From<&io::Error> for ErrorCode {
    fn from(error: &io::Error) -> ErrorCode {
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorCode::NotPermitted,
            io::ErrorKind::OutOfMemory => ErrorCode::NoMemory,
            io::ErrorKind::InvalidInput => ErrorCode::Invalid,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                ErrorCode::NoSpace
            }
            _ => ErrorCode::Io,
        }
    }
}

impl From<io::Error> for ErrorCode {
    fn from(error: io::Error) -> ErrorCode {
        ErrorCode::from(&error)
    }
}

/// Why an NBD client could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text is not an NBD address.
    #[error("'{text}' is not an NBD address: {why}")]
    BadUri {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The server could not be reached at all.
    #[error("cannot connect to the NBD server at {address}")]
    Connect {
        /// Where we tried.
        address: crate::Address,
        /// What the operating system said.
        source: io::Error,
    },
    /// The server did not finish the handshake in time.
    #[error("the NBD server did not finish the handshake within {seconds} s")]
    TimedOut {
        /// How long we waited.
        seconds: u64,
    },
    /// The connection broke during the handshake.
    #[error("the connection broke during the NBD handshake")]
    Handshake(#[source] io::Error),
    /// The server refused an option of the handshake, an unknown export for instance.
    #[error("the NBD server refused {option}: {reason}{}", said(.message))]
    Refused {
        /// The option, by its name in the protocol.
        option: &'static str,
        /// The meaning of the refusal.
        reason: &'static str,
        /// The server's own words, possibly empty.
        message: String,
    },
    /// The server broke the protocol; the connection is closed.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(String),
    /// The server refused a request.
    #[error("NBD {command} of {length} bytes at {offset} failed: {code}{}", said(.message))]
    Remote {
        /// The command, by its name.
        command: &'static str,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// The server's error number.
        code: ErrorCode,
        /// The server's own words, possibly empty.
        message: String,
    },
    /// The connection is gone; the request may or may not have been carried out.
    #[error("the NBD connection is gone: {reason}")]
    Lost {
        /// What ended it.
        reason: Arc<str>,
    },
    /// The range reaches past the end of the export; nothing was sent.
    #[error("{length} bytes at {offset} reach past the end of an export of {size} bytes")]
    OutOfBounds {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// Size of the export in bytes.
        size: u64,
    },
    /// A write does not fit the server's minimum block size; nothing was sent.
    #[error("{length} bytes at {offset} are not aligned to the export's block of {minimum} bytes")]
    Unaligned {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// The server's minimum block size in bytes.
        minimum: u32,
    },
    /// The export is read-only; nothing was sent.
    #[error("the NBD export is read-only")]
    ReadOnly,
    /// The server did not offer what the request needs; nothing was sent.
    #[error("the NBD server does not support {0}")]
    Unsupported(&'static str),
    /// The meta context was not negotiated: not asked for, or the server has none of that name.
    #[error("the NBD export has no meta context '{0}'")]
    NoContext(String),
    /// The status of the range has more extents than one answer may hold.
    #[error("more than {limit} extents in one range: ask for smaller ranges")]
    TooManyExtents {
        /// The most extents one call returns.
        limit: usize,
    },
}

impl Error {
    /// The server's error number, where it was the server that refused a request.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Remote { code, .. } => Some(*code),
            _ => None,
        }
    }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" (server says: {message})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_number_survives_the_wire() {
        for number in [1, 5, 12, 22, 28, 75, 95, 108] {
            assert_eq!(ErrorCode::from_number(number).number(), number);
        }
    }

    #[test]
    fn an_unknown_error_number_reads_as_invalid() {
        assert_eq!(ErrorCode::from_number(4711), ErrorCode::Invalid);
        assert_eq!(ErrorCode::from_number(0), ErrorCode::Invalid);
    }

    #[test]
    fn a_full_disk_is_no_space_and_anything_else_is_io() {
        assert_eq!(ErrorCode::from(io::Error::from(io::ErrorKind::StorageFull)), ErrorCode::NoSpace);
        assert_eq!(ErrorCode::from(io::Error::from(io::ErrorKind::UnexpectedEof)), ErrorCode::Io);
    }

    #[test]
    fn the_server_s_words_are_part_of_the_message() {
        let error =
            Error::Refused { option: "NBD_OPT_GO", reason: "unknown export", message: "no disk 'x' here".into() };
        assert_eq!(
            error.to_string(),
            "the NBD server refused NBD_OPT_GO: unknown export (server says: no disk 'x' here)"
        );
    }
}
