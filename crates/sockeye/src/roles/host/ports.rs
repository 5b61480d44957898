//! Where a host listens: its address if none was given, and whether its ports are free.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use super::settings::Settings;
use super::unfit;
use crate::cli::HostRole;
use crate::ending::Trouble;

/// An address in no network (RFC 5737): which of ours would be used to send there is asked, and nothing is sent.
const OUTSIDE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// The address of this host that leads to the outside.
///
/// # Errors
/// None does: exit code 2.
pub(super) fn outward() -> Result<IpAddr, Trouble> {
    let told = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect(OUTSIDE)?;
        socket.local_addr()
    });
    match told {
        Ok(address) if !address.ip().is_unspecified() => Ok(address.ip()),
        _ => Err(Trouble::usage(
            "it is not known where others reach this host",
            "no address of it leads to the outside: give one with --address",
        )),
    }
}

/// Where a host reaches itself that listens at all its addresses.
pub(super) fn loopback(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

/// Whether these roles could listen now.
///
/// # Errors
/// A port is taken, or the address is not one of this host's: exit code 3.
pub(super) fn are_free(settings: &Settings, roles: &[HostRole]) -> Result<(), Trouble> {
    roles.iter().filter_map(|role| settings.listens(*role)).try_for_each(is_free)
}

fn is_free(address: SocketAddr) -> Result<(), Trouble> {
    let Err(why) = TcpListener::bind(address) else { return Ok(()) };
    let remedy = match why.kind() {
        ErrorKind::AddrInUse => {
            format!("see who listens there (ss -ltnp), or choose other ports with --port ({address})")
        }
        ErrorKind::AddrNotAvailable => {
            "give an address of this host with --address (ip address); --advertise says by what others reach it".into()
        }
        _ => "choose another --address or --port".into(),
    };
    Err(unfit(format!("{address} cannot be listened on"), why, remedy))
}
