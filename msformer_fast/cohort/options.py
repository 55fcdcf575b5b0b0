"""The options of ``msformer-fast segment`` beyond the settings of a segmentation."""

from __future__ import annotations

import argparse


def add_cohort_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them to the command's parser."""
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="an image (PNG, JPEG, TIFF or BMP, 8 or 16 bit; DICOM; NIfTI), or for many at once folders, patterns such "
        "as 'scans/**/*.png', and .csv lists of paths",
    )
    parser.add_argument("-o", "--output", metavar="DIR", help="output folder (one image: ., many: results)")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs, or an earlier run")
    prompts = parser.add_argument_group(
        "what to segment",
        "in pixels of the image, from its upper left corner; in volumes X,Y,Z and X0,Y0,Z0,X1,Y1,Z1, Z a slice from "
        "0 on, from which the object is carried to the others; in lists a column of that name",
    )
    add = prompts.add_argument
    add("--point", action="append", metavar="X,Y", help="a pixel of the object; again for more")
    add("--not-point", action="append", metavar="X,Y", help="a pixel that is not of it; again for more")
    add("--box", action="append", metavar="X0,Y0,X1,Y1", help="a box that holds the object; again for more")
    many = parser.add_argument_group("many images")
    add = many.add_argument
    add("--recursive", action="store_true", help="look into the folders below a folder")
    add(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with the run of the same settings that the output folder holds (the default)",
    )
    add("--retry-failed", action="store_true", help="do the images again that failed before")
    add(
        "--jobs",
        type=int,
        metavar="N",
        help="processes at once (default: 1; with GPUs as many as their memory and the cores allow)",
    )
    add("--max-memory", type=float, metavar="GB", help="for all processes together (default: 90 %% of what is free)")
    add("--too-large", default="refuse", help="what needs more memory: refuse it, or resize it (%(default)s)")
    add("--engine", default="local", help="local, or ray: a Ray cluster (%(default)s)")
    add("--ray-address", metavar="ADDRESS", help="of the cluster; without, one is started on this machine")
    formats = parser.add_argument_group("DICOM and NIfTI")
    add = formats.add_argument
    add("--axis", type=int, default=2, help="of NIfTI volumes, along which they are sliced: 0, 1 or 2 (%(default)s)")
    add(
        "--window",
        type=float,
        nargs=2,
        metavar=("CENTRE", "WIDTH"),
        help="grey levels to show (default: what the file says, else its range)",
    )
    add("--dicom-seg", action="store_true", help="write a DICOM Segmentation of DICOM images too")
    add("--keep-patient", action="store_true", help="with the patient's data in it (default: left out)")
