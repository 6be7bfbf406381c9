//! A launch: what is the same for all of its blocks.

use super::super::error::{EmulatorError, Fault, Trap};
use super::super::ir::{Constant, Program, Variable};
use super::super::memory::{Checks, GlobalMemory};
use super::super::module::Launch;
use super::block::Block;
use super::shared::Shared;

/// What devices allow.
const MAX_THREADS: u64 = 1024;
const MAX_SHARED: u64 = 227 << 10;

/// All that a warp sees besides its own registers.
pub(super) struct Env<'l> {
    pub(super) program: &'l Program,
    pub(super) params: &'l [u8],
    pub(super) memory: &'l mut GlobalMemory,
    pub(super) shared: Shared,
    pub(super) checks: Checks,
    pub(super) launch: &'l Launch,
    /// Counts instructions, as a clock.
    pub(super) clock: u64,
}

/// Runs all blocks of a launch.
pub(in super::super) fn launch(
    name: &str,
    program: &Program,
    variables: &[Variable],
    launch: &Launch,
    params: &[u8],
    memory: &mut GlobalMemory,
) -> Result<(), EmulatorError> {
    let refused = |what: String| EmulatorError::Launch { kernel: name.to_owned(), what };
    let threads: u64 = launch.block.iter().map(|&size| u64::from(size)).product();
    let limit = program.max_threads.map_or(MAX_THREADS, |limit| MAX_THREADS.min(limit.into()));
    if threads == 0 || threads > limit {
        return Err(refused(format!("{threads} threads a block, where 1 to {limit} are possible")));
    }
    if launch.grid.contains(&0) || launch.grid[1] > 65535 || launch.grid[2] > 65535 {
        return Err(refused(format!("a grid of {:?}", launch.grid)));
    }
    if params.len() != program.param_bytes as usize {
        return Err(refused(format!("{} bytes of parameters, where it has {}", params.len(), program.param_bytes)));
    }
    let shared = u64::from(program.dynamic_start) + u64::from(launch.dynamic_shared);
    if shared > MAX_SHARED {
        return Err(refused(format!("{shared} bytes of shared memory, where {MAX_SHARED} are possible")));
    }
    let resolve = |constant: Constant| match constant {
        Constant::Value(value) => Some(value),
        Constant::Global { variable, offset } => {
            variables.get(variable as usize)?.address.map(|address| address.wrapping_add_signed(offset))
        }
    };
    let doubles = program.double_constants.iter().map(|&(index, constant)| Some((index, resolve(constant)?)));
    let doubles = doubles.collect::<Option<Vec<_>>>();
    let doubles = doubles.ok_or_else(|| refused("the module's variables haven't been loaded".to_owned()))?;

    let checks = memory.checks();
    let shared_bytes = match launch.dynamic_shared {
        0 => program.shared_bytes,
        dynamic => program.dynamic_start + dynamic,
    };
    let shared = Shared::new(shared_bytes as usize, threads as usize, checks);
    let mut env = Env { program, params, memory, shared, checks, launch, clock: 0 };
    let mut block = Block::new(&env, threads as u32, &doubles);
    for z in 0..launch.grid[2] {
        for y in 0..launch.grid[1] {
            for x in 0..launch.grid[0] {
                let id = [x, y, z];
                block.run(&mut env, id).map_err(|(warp, line, trap)| {
                    EmulatorError::Fault(Box::new(fault(name, launch, id, warp, line, trap)))
                })?;
            }
        }
    }
    Ok(())
}

fn fault(kernel: &str, launch: &Launch, block: [u32; 3], warp: usize, line: u32, trap: Trap) -> Fault {
    let Trap { lane, address, what } = trap;
    let thread = thread_index(launch.block, warp as u32 * 32 + lane);
    Fault { kernel: kernel.to_owned(), line, block, thread, address, what }
}

/// `%tid` of a thread by its number in the block.
pub(super) fn thread_index([x, y, _]: [u32; 3], thread: u32) -> [u32; 3] {
    [thread % x, thread / x % y, thread / x / y]
}
