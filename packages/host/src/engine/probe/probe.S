# The accelerator probe: a 64 KiB "firmware" that does the least a guest must be able to do, and says so.
# Reset vector (real mode) -> protected mode -> page tables -> long mode -> out 0xf4 (isa-debug-exit).
# Build: as --32 -o probe.o probe.S && ld -m elf_i386 -Ttext 0xf0000 --oformat binary -o probe.bin probe.o
	.code16
	.globl _start
_start:
entry:
	cli
	lgdtl %cs:(gdt_ptr - entry)
	movl %cr0, %eax
	orl $1, %eax
	movl %eax, %cr0
	ljmpl $0x08, $protected
	.code32
protected:
	movw $0x10, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movl $0x8000, %esp
	xorl %eax, %eax          # clear 12 KiB for page tables at 0x1000
	movl $0x1000, %edi
	movl $3072, %ecx
	rep stosl
	movl $0x2003, 0x1000     # PML4[0] -> PDPT
	movl $0x3003, 0x2000     # PDPT[0] -> PD
	movl $0x0083, 0x3000     # PD[0]   -> 2 MiB page at 0
	movl $0x1000, %eax
	movl %eax, %cr3
	movl %cr4, %eax
	orl $0x20, %eax          # PAE
	movl %eax, %cr4
	movl $0xc0000080, %ecx   # EFER.LME
	rdmsr
	orl $0x100, %eax
	wrmsr
	movl %cr0, %eax
	orl $0x80000000, %eax
	movl %eax, %cr0
	ljmpl $0x18, $long64
	.code64
long64:
	movabsq $0x1122334455667788, %rax
	movq %rax, %rbx
	shrq $32, %rbx           # only a 64-bit CPU keeps the upper half
	cmpl $0x11223344, %ebx
	jne fail
	movb $0x31, %al
	outb %al, $0xf4
fail:
	hlt
	jmp fail
	.align 8
gdt:
	.quad 0
	.quad 0x00cf9a000000ffff # 0x08 32-bit code
	.quad 0x00cf92000000ffff # 0x10 data
	.quad 0x00af9a000000ffff # 0x18 64-bit code
gdt_ptr:
	.word gdt_ptr - gdt - 1
	.long gdt
	.org 0xfff0
	.code16
	jmp entry
	.org 0x10000
