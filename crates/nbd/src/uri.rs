//! Where an NBD export is: an address and a name, as the `nbd:` URI says it.
//!
//! ```text
//!   nbd://192.0.2.7:10809/disk0              TCP
//!   nbd://[2001:db8::7]/disk0                TCP, the port NBD has by default
//!   nbd+unix:///disk0?socket=/run/x.sock     unix socket
//! ```
//! Host names are not resolved here: the one who connects across a network decides how names are looked up.
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::{Error, wire};

/// The TCP port registered for NBD.
const PORT: u16 = 10809;

/// Where an NBD server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP address and port.
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// One export of one server. The empty name is the server's default export.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Uri {
    /// Where the server listens.
    pub address: Address,
    /// The name of the export, at most 4096 bytes.
    pub export: String,
}

impl Uri {
    /// An export behind a unix socket.
    pub fn unix(socket: impl AsRef<Path>, export: impl Into<String>) -> Uri {
        Uri { address: Address::Unix(socket.as_ref().to_path_buf()), export: export.into() }
    }

    /// An export behind a TCP address.
    pub fn tcp(address: SocketAddr, export: impl Into<String>) -> Uri {
        Uri { address: Address::Tcp(address), export: export.into() }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use std::os::unix::ffi::OsStrExt;
        let export = encoded(self.export.as_bytes());
        match &self.address {
            Address::Unix(path) => write!(f, "nbd+unix:///{export}?socket={}", encoded(path.as_os_str().as_bytes())),
            Address::Tcp(address) => write!(f, "nbd://{address}/{export}"),
        }
    }
}

impl FromStr for Uri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Uri, Error> {
        parse(text).map_err(|why| Error::BadUri { text: text.chars().take(200).collect(), why })
    }
}

fn parse(text: &str) -> Result<Uri, &'static str> {
    let (scheme, rest) = text.split_once("://").ok_or("it does not begin with nbd:// or nbd+unix://")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let export = String::from_utf8(decoded(export)?).map_err(|_| "the export name is not UTF-8")?;
    if export.len() > wire::MAX_STRING {
        return Err("the export name is longer than 4096 bytes");
    }
    let address = match scheme {
        "nbd+unix" if !authority.is_empty() => return Err("a unix address has three slashes before the export"),
        "nbd+unix" => Address::Unix(socket(query)?),
        "nbd" => Address::Tcp(host_and_port(authority)?),
        _ => return Err("the scheme is neither nbd nor nbd+unix"),
    };
    Ok(Uri { address, export })
}

fn socket(query: &str) -> Result<PathBuf, &'static str> {
    use std::os::unix::ffi::OsStringExt;
    let value =
        query.split('&').find_map(|pair| pair.strip_prefix("socket=")).ok_or("?socket=/path is missing for unix")?;
    let path = decoded(value)?;
    if path.is_empty() || path.contains(&0) {
        return Err("the socket path is empty or has a zero byte");
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

fn host_and_port(authority: &str) -> Result<SocketAddr, &'static str> {
    if let Ok(address) = authority.parse() {
        return Ok(address);
    }
    let (host, port) = match authority.rsplit_once(':') {
        // a bracket after the colon: the colon belongs to an IPv6 address without a port
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| "the port is not a number")?),
        _ => (authority, PORT),
    };
    if host == "localhost" {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let host: IpAddr = host.parse().map_err(|_| "the host is not an IP address (names are not resolved here)")?;
    Ok(SocketAddr::new(host, port))
}

fn encoded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                text.push(byte as char);
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn decoded(text: &str) -> Result<Vec<u8>, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16)).ok_or("a % without two hex digits");
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push((high * 16 + low) as u8);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_usual_forms_are_understood() {
        let uri: Uri = "nbd://127.0.0.1:4000/disk".parse().unwrap();
        assert_eq!(uri, Uri::tcp("127.0.0.1:4000".parse().unwrap(), "disk"));
        let uri: Uri = "nbd://localhost".parse().unwrap();
        assert_eq!(uri, Uri::tcp("127.0.0.1:10809".parse().unwrap(), ""));
        let uri: Uri = "nbd://[::1]/x".parse().unwrap();
        assert_eq!(uri, Uri::tcp("[::1]:10809".parse().unwrap(), "x"));
        let uri: Uri = "nbd+unix:///a%20b?socket=/tmp/s".parse().unwrap();
        assert_eq!(uri, Uri::unix("/tmp/s", "a b"));
        let uri: Uri = "nbd+unix://?socket=/tmp/s".parse().unwrap();
        assert_eq!(uri, Uri::unix("/tmp/s", ""));
    }

    #[test]
    fn what_is_not_an_address_is_refused_with_a_reason() {
        for text in
            ["", "disk", "http://127.0.0.1/", "nbd://host/x", "nbd://127.0.0.1:x/", "nbd+unix:///x", "nbd:///%4"]
        {
            let error = text.parse::<Uri>().unwrap_err();
            assert!(matches!(error, Error::BadUri { .. }), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_name_and_path_survive_being_written_and_read(name in ".{0,40}", path in "/[^\0]{1,40}") {
            for uri in [Uri::unix(&path, name.clone()), Uri::tcp("[2001:db8::1]:77".parse().unwrap(), name.clone())] {
                prop_assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*", rest in "\\PC*") {
            let _ = text.parse::<Uri>();
            let _ = format!("nbd://{text}/{rest}").parse::<Uri>();
            let _ = format!("nbd+unix:///{text}?socket={rest}").parse::<Uri>();
        }
    }
}
