//! The compiled kernels that this binary holds, and which of them a device gets.
//!
//! `scripts/build-cuda-kernels` makes one archive an architecture (its source describes the format) from `kernels/cu` and
//! writes their hashes into `kernels/fatbin/manifest.json`. Cubins (`sm_*`) are code; PTX (`compute_*`) is translated by
//! the driver, for devices that are newer than this binary, and run by the emulator.

use std::fmt;
use std::io::Read;

use super::error::{CudaError, Result};

/// Bytes that an archive may unpack to: more is damage.
const MAX_UNPACKED: usize = 256 << 20;
/// KiB that unpacking may take: twice the dictionary that archives are packed with.
const MAX_UNPACKER_KIB: u32 = 32 << 10;

/// What an archive holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Code of one architecture.
    Cubin,
    /// Text that the driver translates for a device of this or a newer architecture.
    Ptx,
}

/// All kernels for one architecture, compressed.
#[derive(Clone, Copy)]
pub struct Archive {
    code: Code,
    capability: (u32, u32),
    packed: &'static [u8],
}

/// One compiled `.cu` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelModule {
    /// The file's name without `.cu`.
    pub name: String,
    /// What can be launched.
    pub kernels: Vec<KernelRecord>,
    /// A cubin, or PTX as UTF-8 without a NUL.
    pub code: Vec<u8>,
}

/// What the compiler knows of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRecord {
    /// Name of the function.
    pub name: String,
    /// Bytes of its parameter.
    pub args_bytes: usize,
    /// Most threads of a block.
    pub max_threads: u32,
}

macro_rules! archive {
    ($code:ident, $major:literal, $minor:literal, $name:literal) => {
        Archive {
            code: Code::$code,
            capability: ($major, $minor),
            packed: include_bytes!(concat!("../../fatbin/", $name, ".bin")),
        }
    };
}

/// By code and capability, ascending.
static ARCHIVES: [Archive; 10] = [
    archive!(Cubin, 7, 5, "sm_75"),
    archive!(Cubin, 8, 0, "sm_80"),
    archive!(Cubin, 8, 6, "sm_86"),
    archive!(Cubin, 8, 9, "sm_89"),
    archive!(Cubin, 9, 0, "sm_90"),
    archive!(Cubin, 10, 0, "sm_100"),
    archive!(Cubin, 12, 0, "sm_120"),
    archive!(Ptx, 7, 5, "compute_75"),
    archive!(Ptx, 8, 0, "compute_80"),
    archive!(Ptx, 9, 0, "compute_90"),
];

/// Boards whose code isn't that of the graphics cards of the same major capability: they take PTX.
const TEGRA: [(u32, u32); 3] = [(8, 7), (10, 1), (11, 0)];

/// The archives that a device of this capability can run, best first: its own code, that of a lower minor capability of
/// the same major one, then PTX from the newest to the oldest. Empty for a device older than all of them.
pub fn candidates(capability: (u32, u32)) -> Vec<&'static Archive> {
    let fits = |archive: &&Archive| match archive.code {
        Code::Cubin => {
            archive.capability.0 == capability.0
                && archive.capability.1 <= capability.1
                && (archive.capability == capability || !TEGRA.contains(&capability))
        }
        Code::Ptx => archive.capability <= capability,
    };
    let mut found: Vec<_> = ARCHIVES.iter().filter(fits).collect();
    found.sort_by_key(|archive| (archive.code == Code::Ptx, std::cmp::Reverse(archive.capability)));
    found
}

/// The PTX for exactly this capability, such as `(8, 0)`.
pub fn ptx(capability: (u32, u32)) -> Option<&'static Archive> {
    ARCHIVES.iter().find(|archive| archive.code == Code::Ptx && archive.capability == capability)
}

/// All archives.
pub fn archives() -> &'static [Archive] {
    &ARCHIVES
}

impl fmt::Display for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.code {
            Code::Cubin => "sm",
            Code::Ptx => "compute",
        };
        write!(f, "{kind}_{}{}", self.capability.0, self.capability.1)
    }
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Archive({self}, {} bytes)", self.packed.len())
    }
}

impl Archive {
    /// What it holds.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What it was compiled for.
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// Bytes that it takes in this binary.
    pub fn packed_bytes(&self) -> usize {
        self.packed.len()
    }

    /// The modules in it, by name.
    ///
    /// # Errors
    /// [`CudaError::Archive`] where the bytes aren't an archive.
    pub fn unpack(&self) -> Result<Vec<KernelModule>> {
        unpack(self.packed).map_err(|why| CudaError::Archive { archive: self.to_string(), why: why.into() })
    }
}

fn unpack(packed: &[u8]) -> Result<Vec<KernelModule>, &'static str> {
    let mut head = Reader(packed);
    if head.take(8)? != b"SHIMMYK2" {
        return Err("it doesn't begin with its magic");
    }
    let length = head.number()?;
    if length > MAX_UNPACKED {
        return Err("it is too long");
    }
    let reader = lzma_rust2::XzReader::new_mem_limit(head.0, false, MAX_UNPACKER_KIB);
    let mut body = Vec::with_capacity(length);
    // A byte more than it should have shows that it is too long.
    reader.take(length as u64 + 1).read_to_end(&mut body).map_err(|_| "its compressed part can't be read")?;
    if body.len() != length {
        return Err("it has another length than it says");
    }
    let mut body = Reader(&body);
    let mut modules = Vec::new();
    for _ in 0..body.number()? {
        let name = body.text()?;
        let mut kernels = Vec::new();
        for _ in 0..body.number()? {
            let name = body.text()?;
            let args_bytes = body.number()?;
            let max_threads = u32::try_from(body.number()?).map_err(|_| "a number is too large")?;
            kernels.push(KernelRecord { name, args_bytes, max_threads });
        }
        let length = body.number()?;
        modules.push(KernelModule { name, kernels, code: body.take(length)?.to_vec() });
    }
    if body.0.is_empty() { Ok(modules) } else { Err("bytes are left behind its modules") }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or("it ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<usize, &'static str> {
        let bytes = self.take(4)?.try_into().map_err(|_| "it ends too early")?;
        usize::try_from(u32::from_le_bytes(bytes)).map_err(|_| "a number is too large")
    }

    fn text(&mut self) -> Result<String, &'static str> {
        let length = self.number()?;
        String::from_utf8(self.take(length)?.to_vec()).map_err(|_| "a name isn't UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use sha2::{Digest, Sha256};

    use super::*;

    fn names(capability: (u32, u32)) -> Vec<String> {
        candidates(capability).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_device_gets_its_own_code_else_that_of_its_family_else_the_newest_ptx() {
        for (capability, expected) in [
            ((5, 2), &[][..]),
            ((6, 1), &[]),
            ((7, 0), &[]),
            ((7, 2), &[]),
            ((7, 5), &["sm_75", "compute_75"]),
            ((8, 0), &["sm_80", "compute_80", "compute_75"]),
            ((8, 6), &["sm_86", "sm_80", "compute_80", "compute_75"]),
            ((8, 9), &["sm_89", "sm_86", "sm_80", "compute_80", "compute_75"]),
            ((9, 0), &["sm_90", "compute_90", "compute_80", "compute_75"]),
            ((10, 0), &["sm_100", "compute_90", "compute_80", "compute_75"]),
            ((10, 3), &["sm_100", "compute_90", "compute_80", "compute_75"]),
            ((12, 0), &["sm_120", "compute_90", "compute_80", "compute_75"]),
            ((12, 1), &["sm_120", "compute_90", "compute_80", "compute_75"]),
            // Never made: newer than everything.
            ((13, 0), &["compute_90", "compute_80", "compute_75"]),
            // Tegra.
            ((8, 7), &["compute_80", "compute_75"]),
            ((11, 0), &["compute_90", "compute_80", "compute_75"]),
        ] {
            assert_eq!(names(capability), expected, "{capability:?}");
        }
    }

    fn kernels(archive: &Archive) -> BTreeSet<String> {
        let modules = archive.unpack().unwrap();
        let names: Vec<_> = modules.into_iter().flat_map(|module| module.kernels).map(|kernel| kernel.name).collect();
        let set: BTreeSet<_> = names.iter().cloned().collect();
        assert_eq!(set.len(), names.len(), "{archive}: a name twice");
        set
    }

    #[test]
    fn every_archive_unpacks_and_code_holds_the_kernels_of_its_ptx() {
        for archive in archives() {
            let modules = archive.unpack().unwrap();
            let unpacked: usize = modules.iter().map(|module| module.code.len()).sum();
            println!("{archive}: {} bytes, {unpacked} bytes of code, {} modules", archive.packed.len(), modules.len());
            for KernelModule { name, kernels, code } in &modules {
                match archive.code {
                    Code::Cubin => assert!(code.starts_with(b"\x7fELF"), "{archive} {name}"),
                    Code::Ptx => {
                        let text = std::str::from_utf8(code).unwrap();
                        let (major, minor) = archive.capability;
                        assert!(text.contains(&format!("\n.target sm_{major}{minor}")), "{archive} {name}");
                        assert!(!text.contains('\0'), "{archive} {name}");
                    }
                }
                assert!(!kernels.is_empty());
                assert!(kernels.iter().all(|kernel| (1..=4096).contains(&kernel.args_bytes)), "{archive} {name}");
                assert!(kernels.iter().all(|kernel| (1..=1024).contains(&kernel.max_threads)), "{archive} {name}");
            }
            let names = kernels(archive);
            assert!(names.contains("fill_f32"));
            // The PTX that the code was made of, and none of an older one is missing.
            let ptx = candidates(archive.capability).into_iter().filter(|other| other.code == Code::Ptx);
            for (age, ptx) in ptx.enumerate() {
                let older = kernels(ptx);
                assert!(older.is_subset(&names), "{archive} lacks kernels of {ptx}");
                assert!(age > 0 || older == names, "{archive} has kernels that {ptx} lacks");
            }
        }
        println!("together: {} bytes", archives().iter().map(Archive::packed_bytes).sum::<usize>());
    }

    #[test]
    fn damaged_archives_are_refused() {
        let good = ptx((8, 0)).unwrap().packed;
        assert!(unpack(good).is_ok());
        for length in [0, 4, 8, 11, 12, 20, good.len() / 2, good.len() - 5] {
            assert!(unpack(&good[..length]).is_err(), "cut to {length}");
        }
        let mut longer = good.to_vec();
        longer[8] ^= 1;
        assert!(unpack(&longer).is_err(), "another length");
        let mut huge = good.to_vec();
        huge[8..12].fill(0xff);
        assert_eq!(unpack(&huge), Err("it is too long"));
        let mut magic = good.to_vec();
        magic[0] ^= 1;
        assert!(unpack(&magic).is_err(), "another magic");
        // The check sum finds what unpacking doesn't.
        let mut flipped = good.to_vec();
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        assert!(unpack(&flipped).is_err(), "another check sum");
    }

    /// What follows `"key": ` in the manifest's line.
    fn field<'a>(line: &'a str, key: &str) -> &'a str {
        let (_, rest) = line.split_once(&format!("\"{key}\": ")).unwrap_or_else(|| panic!("no {key} in {line}"));
        rest.split([',', '}']).next().unwrap().trim_matches('"')
    }

    fn hex(hash: Sha256) -> String {
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_archives_were_made_of_these_sources() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cu");
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh"));
        files.sort();
        assert!(!files.is_empty());
        let mut hash = Sha256::new();
        for path in files {
            let content = std::fs::read(&path).unwrap();
            hash.update(format!("{}\0{}\0", path.file_name().unwrap().to_str().unwrap(), content.len()));
            hash.update(content);
        }
        let sources = hex(hash);
        let manifest = include_str!("../../fatbin/manifest.json");
        for archive in archives() {
            let line = manifest.lines().find(|line| line.trim_start().starts_with(&format!("\"{archive}\": ")));
            let line = line.unwrap_or_else(|| panic!("no {archive} in the manifest"));
            assert_eq!(
                field(line, "sources"),
                sources,
                "{archive}: kernels/cu changed; run scripts/build-cuda-kernels"
            );
            let mut own = Sha256::new();
            own.update(archive.packed);
            assert_eq!(
                field(line, "sha256"),
                hex(own),
                "{archive}: not what the manifest names; run scripts/build-cuda-kernels"
            );
        }
    }
}
