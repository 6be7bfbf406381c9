//! Modules: parsed text, its variables in memory, and launches of its kernels.

use super::error::EmulatorError;
use super::exec;
use super::ir::{Kernel, Variable};
use super::memory::GlobalMemory;
use super::parse;

/// A kernel of the module that named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelId(usize);

/// The shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks, x first.
    pub grid: [u32; 3],
    /// Threads of a block, x first; at most 1024 in all.
    pub block: [u32; 3],
    /// Bytes of shared memory beyond what the kernel declares.
    pub dynamic_shared: u32,
}

/// A parsed module.
pub struct Module {
    kernels: Vec<Kernel>,
    variables: Vec<Variable>,
}

impl Module {
    /// Parses PTX text.
    ///
    /// # Errors
    /// If the text isn't PTX. An instruction that isn't known makes only the kernel that has it unusable: launching it
    /// fails.
    pub fn parse(ptx: &str) -> Result<Self, EmulatorError> {
        let parse::Parsed { kernels, variables } = parse::parse(ptx)?;
        Ok(Self { kernels, variables })
    }

    /// A kernel by name.
    pub fn kernel(&self, name: &str) -> Option<KernelId> {
        self.kernels.iter().position(|kernel| kernel.name == name).map(KernelId)
    }

    /// Names of all kernels, in the text's order.
    pub fn kernel_names(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|kernel| kernel.name.as_str())
    }

    /// Says whether the kernel can run.
    ///
    /// # Errors
    /// [`EmulatorError::Unsupported`] with the first instruction that isn't known.
    pub fn check(&self, kernel: KernelId) -> Result<(), EmulatorError> {
        self.program(kernel).map(|_| ())
    }

    /// Places the module's variables in memory, with their initial contents. Again does so afresh.
    ///
    /// # Errors
    /// If the memory is full.
    pub fn load(&mut self, memory: &mut GlobalMemory) -> Result<(), EmulatorError> {
        for variable in &mut self.variables {
            let bytes = variable.bytes.len();
            let address = memory.alloc(bytes).ok_or_else(|| EmulatorError::Memory {
                address: 0,
                bytes,
                what: format!("no memory left for the variable {}", variable.name),
            })?;
            // An allocation is aligned to 256 bytes; a declaration may ask for more.
            if variable.align > 256 {
                let what = format!("the variable {} wants an alignment of {}", variable.name, variable.align);
                return Err(EmulatorError::Memory { address, bytes, what });
            }
            memory.write(address, &variable.bytes)?;
            variable.address = Some(address);
        }
        for variable in &self.variables {
            for &(at, target, offset) in &variable.pointers {
                let target = self.variables.get(target as usize).and_then(|target| target.address).unwrap_or(0);
                let value = target.wrapping_add_signed(offset);
                memory.write(variable.address.unwrap_or(0) + at as u64, &value.to_le_bytes())?;
            }
        }
        Ok(())
    }

    /// Runs a kernel to its end. `params` are the bytes of its parameters as declared, padding included.
    ///
    /// # Errors
    /// [`EmulatorError::Fault`] if a thread does what a GPU forbids or leaves undefined; the other kinds if the kernel
    /// can't run at all.
    pub fn launch(
        &self,
        kernel: KernelId,
        launch: &Launch,
        params: &[u8],
        memory: &mut GlobalMemory,
    ) -> Result<(), EmulatorError> {
        let (name, program) = self.program(kernel)?;
        exec::launch(name, program, &self.variables, launch, params, memory)
    }

    fn program(&self, kernel: KernelId) -> Result<(&str, &super::ir::Program), EmulatorError> {
        let Some(Kernel { name, program }) = self.kernels.get(kernel.0) else {
            let what = "it belongs to another module".to_owned();
            return Err(EmulatorError::Launch { kernel: String::new(), what });
        };
        match program {
            Ok(program) => Ok((name, program)),
            Err((line, what)) => {
                Err(EmulatorError::Unsupported { kernel: name.clone(), line: *line, what: what.clone() })
            }
        }
    }
}
