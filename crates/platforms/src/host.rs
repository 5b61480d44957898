//! What a host's own files tell of a machine, whichever hypervisor opens them: the platforms that keep disks as files share it.
//!
//! ```text
//!   folder   a machine's folder of notes      image   what an image tells while nobody has it open
//!   marks    what overlays count from         rest    whether somebody had the images in hand meanwhile
//!   maps     change maps: their names, reading them   overlays images that take a machine's writes
//!   settled  what is told of a machine that was let go of   nvram   what its UEFI firmware remembers
//!   places   its bridges, and folders where disks can be made
//! ```

pub(crate) mod folder;
pub(crate) mod image;
pub(crate) mod maps;
pub(crate) mod marks;
pub(crate) mod nvram;
pub(crate) mod overlays;
pub(crate) mod places;
pub(crate) mod rest;
pub(crate) mod settled;
