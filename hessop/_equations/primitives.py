"""What primitives are, by name: the one table that engines, cost model and rewrites ask.

A set states what holds for each of its members, whatever their parameters. The reason stands above the set, or beside a member
that needs one of its own. Some names exist in one supported version of JAX only.

Depends on nothing. Must never hold rules: what to do with a primitive is up to whoever asks.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --- Primitives that carry a jaxpr ---

REMAT = _names("remat remat2 checkpoint")
# Running the jaxpr is all that they mean. Not custom_jvp_call and custom_vjp_call: inlining those would lose the user's rule
# for further derivatives.
CALLS = REMAT | _names("jit pjit closed_call core_call core_closed_call eval_jaxpr")
# Carry a derivative rule of their own.
RULED = _names("custom_jvp_call custom_vjp_call")
# Control flow and checkpoints: the parameter that holds the jaxpr, or the jaxprs, of what is differentiated. That of a `while`
# also has a condition, which has no derivative.
BODIES = {**dict.fromkeys((*REMAT, "scan"), "jaxpr"), "cond": "branches", "while": "body_jaxpr"}

# --- Where entries go ---

# The same entries in the same order in another shape: no work.
VIEWS = _names("reshape squeeze expand_dims")
# Each entry of the result is an entry of the operand, and each entry of the operand occurs in the result. JAX 0.12 has `tile`.
RELABELS = VIEWS | _names("broadcast_in_dim transpose tile")
# The operand, perhaps in another buffer or on other devices. (`pvary` exists in some versions of JAX only.)
IDENTITIES = _names("copy copy_p optimization_barrier sharding_constraint device_put pvary")
# Adds no kernel and next to nothing to compile: XLA copies or converts entries inside the kernel that reads them.
WITHOUT_KERNEL = VIEWS | _names("broadcast_in_dim transpose slice iota rev concatenate pad copy copy_p convert_element_type")
# Each entry of the result is an entry of the first operand: if all of those are one number, so is the result.
PICKS = RELABELS | _names(
    """
    slice dynamic_slice rev split copy copy_p stop_gradient optimization_barrier
    reduce_max reduce_min reduce_and reduce_or cummax cummin
    """
)

# --- Entry by entry ---

COMPARISONS = _names("eq ne lt le gt ge")
LOGIC = _names("and or not")
# Entry k of the result depends on entry k of each operand alone. Some operands may be scalars: those of clamp and select_n.
ELEMENTWISE = (
    COMPARISONS
    | LOGIC
    | _names(
        """
        xor shift_left shift_right_arithmetic shift_right_logical population_count clz
        add add_any sub mul div rem neg abs sign max min clamp select_n nextafter
        integer_pow pow square sqrt rsqrt cbrt exp exp2 expm1 log log1p logistic
        sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh
        erf erfc erf_inv lgamma digamma polygamma zeta igamma igammac regularized_incomplete_beta bessel_i0e bessel_i1e
        floor ceil round is_finite real imag conj complex convert_element_type reduce_precision copy copy_p stop_gradient
        """
    )
)
# a o b equals b o a to the last bit. Not max and min: JAX does not say which of 0.0 and -0.0 they return.
COMMUTATIVE = _names("add add_any mul and or xor eq ne")
# f(-a) equals -f(a) to the last bit. Not sin or tanh: XLA approximates them and promises no symmetry.
ODD = _names("sign round copy copy_p reduce_precision real imag stop_gradient")

# --- Derivatives ---

# The derivative is zero wherever it exists: constant between jumps, or, for stop_gradient, by definition.
WITHOUT_DERIVATIVE = _names("sign floor ceil round stop_gradient")
# First and second derivatives are finite wherever the operands are: bilinear, piecewise linear or entire functions, and those
# without a pole on the real axis.
SMOOTH = _names(
    """
    add add_any sub mul neg abs max min clamp select_n square sign floor ceil round is_finite
    convert_element_type reduce_precision copy copy_p real imag complex stop_gradient
    exp exp2 expm1 sin cos sinh cosh tanh atan asinh logistic erf erfc
    """
)
# If indices out of bounds are clipped, JAX 0.10's rule for these gives an asymmetric Hessian; that of JAX 0.12 does not.
EXTREMAL_SCATTERS = _names("scatter_max scatter_min scatter-max scatter-min")

# --- Cost ---

# Elementwise, and so expensive that XLA does not recompute it in each kernel that reads it.
EXPENSIVE = _names(
    """
    div rem pow sqrt rsqrt cbrt exp exp2 expm1 log log1p logistic
    sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh erf erfc erf_inv lgamma digamma
    """
)

# --- Effects ---

# Without an effect that JAX knows of, and yet with another result each time.
NEVER_EQUAL = _names("rng_uniform")
