//! `cargo lab matrix`: boots every kernel in every mode of the unit.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::cache::Cache;
use crate::cli;
use crate::guests;
use crate::image;
use crate::kernel::stock::{self, Choice};
use crate::materials::{Initrd, Materials};
use crate::world::Word;

/// The lab's own kernel in `--kernel`.
const LAB: &str = "lab";
/// The test program whose tests are the cells.
const PROGRAM: &str = "matrix";
/// The one with cells of its own, for the lab's kernel only.
const ENGINE_PROGRAM: &str = "ioat";
/// All cells.
const LIMIT: Duration = Duration::from_secs(8 * 60 * 60);
/// One cell, in seconds: distributions' kernels are large, and the machine may be emulated.
const CELL_LIMIT_S: &str = "600";

/// Runs the cells that are asked for.
///
/// # Errors
/// An unknown kernel is named, one cannot be fetched, or the world does not run.
pub fn run(options: &cli::Matrix) -> Result<bool> {
    let kernels = choose(&options.kernel)?;
    let cache = Cache::open()?;
    let with_lab = options.kernel.is_empty() || options.kernel.iter().any(|name| name == LAB);
    let wanted = |name: &str| name == PROGRAM || with_lab && options.unit.is_none() && name == ENGINE_PROGRAM;
    let programs: Vec<_> = guests::programs()?.into_iter().filter(|program| wanted(&program.name)).collect();
    ensure!(programs.iter().any(|program| program.name == PROGRAM), "svmm-tests has no test {PROGRAM}");
    let materials = Materials::prepare(&cache, Initrd::Tests)?;
    let mut workload = guests::workload(&materials);
    workload.env.push(("SVMM_MATRIX", "all".into()));
    workload.env.push(("SVMM_TEST_TIMEOUT_S", CELL_LIMIT_S.into()));
    if let Some(options) = &options.unit {
        workload.env.push(("SVMM_MATRIX_UNIT", format!(",{options}").into()));
    }
    for choice in kernels {
        let stock = stock::ensure(&cache, choice)?;
        eprintln!("[lab] {}: {}", choice.name, stock.package);
        let initrd = image::guest::with_modules(&cache, materials.initrd(), choice.name, &stock.modules())?;
        let initrd_name = format!("{}.cpio", choice.name);
        workload.env.push((choice.image_variable, Word::file(choice.name)));
        workload.env.push((choice.initrd_variable, Word::file(&initrd_name)));
        workload.files.push((choice.name.to_owned(), stock.image()));
        workload.files.push((initrd_name, initrd));
    }
    let mut words = options.filters.clone();
    if !with_lab {
        words.extend(["--skip".to_owned(), format!("{LAB}/")]);
    }
    guests::run(&materials, workload, &programs, &words, LIMIT)
}

/// The stock kernels among `names`; all when there is none.
fn choose(names: &[String]) -> Result<Vec<&'static Choice>> {
    for name in names {
        if name != LAB && !stock::ALL.iter().any(|choice| choice.name == name) {
            let known: Vec<&str> = stock::ALL.iter().map(|choice| choice.name).collect();
            bail!("there is no kernel {name}; there are {LAB}, {}", known.join(", "));
        }
    }
    let wanted = |choice: &&Choice| names.is_empty() || names.iter().any(|name| name == choice.name);
    Ok(stock::ALL.iter().filter(wanted).collect())
}
