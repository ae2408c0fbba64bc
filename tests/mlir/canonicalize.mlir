module @everything {
  sdy.mesh @mesh = <["x"=2]>
  func.func public @main(%arg0: tensor<4x4xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"x"}, {}]>, tf.aliasing_output = 0 : i32}, %arg1: tensor<4xi1>) -> (tensor<4x4xf32>, tensor<4xi1>, tensor<4xi1>) {
    %cst = stablehlo.constant dense<1.000000e+00> : tensor<4x4xf32>
    %cst_0 = stablehlo.constant dense<5.000000e-01> : tensor<4x4xf32>
    %0 = stablehlo.multiply %arg0, %arg0 : tensor<4x4xf32>
    %1 = stablehlo.dot_general %0, %arg0, contracting_dims = [1] x [0] : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
    %2 = stablehlo.log %cst_0 : tensor<4x4xf32>
    %3 = stablehlo.add %1, %2 : tensor<4x4xf32>
    %4 = stablehlo.exponential %3 : tensor<4x4xf32>
    %5 = stablehlo.subtract %2, %1 : tensor<4x4xf32>
    %6 = stablehlo.exponential %5 : tensor<4x4xf32>
    %7 = stablehlo.subtract %4, %6 : tensor<4x4xf32>
    %8 = stablehlo.exponential_minus_one %1 : tensor<4x4xf32>
    %9 = stablehlo.add %8, %cst : tensor<4x4xf32>
    %10 = stablehlo.divide %8, %9 : tensor<4x4xf32>
    %11 = stablehlo.add %8, %10 : tensor<4x4xf32>
    %12 = stablehlo.multiply %cst_0, %11 : tensor<4x4xf32>
    %13 = stablehlo.abs %1 : tensor<4x4xf32>
    %14 = stablehlo.compare LT, %13, %cst : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xi1>
    %15 = stablehlo.select %14, %12, %7 : tensor<4x4xi1>, tensor<4x4xf32>
    %16 = stablehlo.add %arg0, %arg0 : tensor<4x4xf32>
    %17 = stablehlo.multiply %16, %16 : tensor<4x4xf32>
    %18 = stablehlo.add %15, %17 : tensor<4x4xf32>
    %19 = sdy.sharding_constraint %18 <@mesh, [{}, {"x"}]> : tensor<4x4xf32>
    %20 = stablehlo.or %arg1, %arg1 : tensor<4xi1>
    %21 = stablehlo.and %arg1, %arg1 : tensor<4xi1>
    return %19, %20, %21 : tensor<4x4xf32>, tensor<4xi1>, tensor<4xi1>
  }
}
