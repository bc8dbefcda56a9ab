"""Devices to bench on: this machine, one behind ssh, an emulated or an estimated ARM processor.

Data flow: a name -> `naming.resolve_device` -> a `Device` with its method -> `dispatch` -> rows that carry it. Methods
never mix: measured rows have seconds, emulated rows instructions and parity, estimated rows an interval of seconds.

    naming, profiles          what a name means; what is known about a processor, with sources
    jobs, ssh, agent          measured-ssh: `agent` is sent, runs there, and leaves nothing behind
    sysroot, emulation, guest emulated: aarch64 ONNX Runtime under qemu-user; `guest` runs inside
    workload, estimation      estimated: what a graph does, and how long that takes on a profile
    calibration               the host's own profile, and how far estimates on it are off
    jobs, bundle              a folder that a device runs by itself
    listing, showing          what a person reads
"""
