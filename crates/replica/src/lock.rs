//! QEMU's own locks on an image file, held by us: whoever starts a machine on a replica by mistake is refused by QEMU.
//!
//! QEMU marks what it does with an image by OFD read locks on single bytes: byte `100 + p` says "I use permission p",
//! byte `200 + p` says "I do not let others use p"; p = 1 is writing. It then asks whether anybody holds the opposite
//! byte. We take 101 and 201, as a writer does that tolerates no other: QEMU then refuses the file read-write, and as a
//! backing file too (measured on 7.2). Two master targets exclude each other by the same rule. The locks
//! belong to the open file and vanish with it, also after a kill.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const WRITES: libc::off_t = 101;
const SHARES_NO_WRITING: libc::off_t = 201;

/// Takes the locks of an exclusive writer on `file`.
///
/// # Errors
/// `WouldBlock` when somebody writes the file or forbids writing; what the file system says.
pub(crate) fn take(file: &File) -> io::Result<()> {
    for byte in [WRITES, SHARES_NO_WRITING] {
        ofd(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte)?;
    }
    for byte in [WRITES, SHARES_NO_WRITING] {
        // Asking for a write lock finds everybody else's read lock; it is never taken.
        if ofd(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)? != libc::F_UNLCK as libc::c_short {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another program has the disk open"));
        }
    }
    Ok(())
}

/// Takes the lock of a reader that lets nobody write meanwhile.
///
/// # Errors
/// `WouldBlock` when somebody writes the file; what the file system says.
pub(crate) fn share(file: &File) -> io::Result<()> {
    ofd(file, libc::F_OFD_SETLK, libc::F_RDLCK, SHARES_NO_WRITING)?;
    match ofd(file, libc::F_OFD_GETLK, libc::F_WRLCK, WRITES)? == libc::F_UNLCK as libc::c_short {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::WouldBlock, "another program writes the disk")),
    }
}

#[allow(unsafe_code)]
fn ofd(file: &File, command: libc::c_int, kind: libc::c_int, byte: libc::off_t) -> io::Result<libc::c_short> {
    // rustix has no OFD locks. SAFETY: `flock` is plain numbers, for which all zeroes is a value; the kernel
    // reads and writes that struct only, during the call; the descriptor is open as long as `file` is borrowed.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte;
    lock.l_len = 1;
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_opened_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d.raw");
        let first = crate::FileDisk::create(&path, 4096).unwrap();
        assert_eq!(crate::FileDisk::open(&path).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(crate::FileDisk::read_only(&path).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        let readers = [crate::FileDisk::read_only(&path).unwrap(), crate::FileDisk::read_only(&path).unwrap()];
        assert_eq!(crate::FileDisk::open(&path).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(readers);
        crate::FileDisk::open(&path).unwrap();
    }
}
