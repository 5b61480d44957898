//! The machine as its owner has it at home: disks, a description in the hypervisor's own words, the first start.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

use super::{At, MACHINE, World, succeed};

impl World {
    /// Home's own disks.
    pub fn home_disks(&self) -> [PathBuf; 2] {
        let [a, b] = self.settings.formats;
        [self.dir(At::Home).join(format!("a.{a}")), self.dir(At::Home).join(format!("b.{b}"))]
    }

    pub(super) fn seed(&self) -> anyhow::Result<()> {
        let [a, b] = self.home_disks();
        let raw = [self.dir(At::Home).join("a.raw"), self.dir(At::Home).join("b.raw")];
        guest::seed_pair(&raw[0], &raw[1], self.settings.disk_bytes, 1, self.settings.written_bytes)
            .map_err(|fault| anyhow::anyhow!("the disks cannot be made: {fault}"))?;
        for (raw, disk) in raw.iter().zip([a, b]).filter(|(raw, disk)| **raw != *disk) {
            let made =
                Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(&disk).status()?;
            if !made.success() {
                bail!("qemu-img could not make {}", disk.display());
            }
            std::fs::remove_file(raw)?;
        }
        Ok(())
    }

    pub(super) fn define(&self) -> anyhow::Result<()> {
        let [a, b] = self.home_disks();
        let boot = self.site_dir(At::Home).join("boot");
        if let Some(uri) = self.settings.libvirt.get(&At::Home) {
            return self.define_in_libvirt(uri, [&a, &b], &boot);
        }
        let mut command = self.command(At::Home);
        command.args(["vm", "define", "--name", MACHINE, "--memory", "192", "--site-dir"]).arg(self.site_dir(At::Home));
        command.arg("--disk").arg(format!("disk0={}:{}", a.display(), self.settings.formats[0]));
        command.arg("--disk").arg(format!("disk1={}:{}", b.display(), self.settings.formats[1]));
        command.arg("--kernel").arg(boot.join("vmlinuz")).arg("--initrd").arg(boot.join("initrd.img"));
        command.arg("--append").arg(guest::kernel_command_line(self.settings.rate, guest::Pattern::Mixed));
        succeed(&mut command)
    }

    /// As its owner would: libvirt's own XML, with what only libvirt knows in it.
    fn define_in_libvirt(&self, uri: &str, disks: [&Path; 2], boot: &Path) -> anyhow::Result<()> {
        let disks: String = disks
            .iter()
            .zip([("vda", "disk0"), ("vdb", "disk1")])
            .zip(self.settings.formats)
            .map(|((path, (dev, serial)), format)| {
                format!(
                    "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>\
                 <target dev='{dev}' bus='virtio'/><serial>{serial}</serial></disk>",
                    path.display()
                )
            })
            .collect();
        let console = self.console_file(At::Home);
        std::fs::create_dir_all(self.machine_dir(At::Home, MACHINE))?;
        let domain = format!(
            "<domain type='qemu'><name>{MACHINE}</name><title>the ledger</title><memory unit='MiB'>192</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{}</kernel><initrd>{}</initrd><cmdline>{}</cmdline></os>\
             <features><acpi/></features><devices>{disks}<serial type='file'><source path='{}' append='on'/></serial>\
             </devices></domain>",
            boot.join("vmlinuz").display(),
            boot.join("initrd.img").display(),
            guest::kernel_command_line(self.settings.rate, guest::Pattern::Mixed),
            console.display()
        );
        let file = self.dir(At::Home).join("web01.xml");
        std::fs::write(&file, domain)?;
        succeed(Command::new("virsh").args(["-q", "-c", uri, "define"]).arg(file))
    }

    /// Starts the guest at home, as its owner would.
    pub fn start_guest(&self) -> anyhow::Result<()> {
        if let Some(uri) = self.settings.libvirt.get(&At::Home) {
            return succeed(Command::new("virsh").args(["-q", "-c", uri, "start", MACHINE]));
        }
        let mut command = self.command(At::Home);
        command.args(["vm", "start", MACHINE, "--site-dir"]).arg(self.site_dir(At::Home));
        succeed(&mut command)
    }

    /// Defines a machine of one disk and no guest at home, and starts it. `disk` is as `sockeye vm define` takes it.
    pub fn define_bare(&self, machine: &str, disk: &str) -> anyhow::Result<()> {
        let mut command = self.command(At::Home);
        command.args(["vm", "define", "--name", machine, "--memory", "64", "--start", "--disk", disk, "--site-dir"]);
        succeed(command.arg(self.site_dir(At::Home)))
    }
}
